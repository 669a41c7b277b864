"""Tiles cover every picture, blend without seams and keep memory to the tile's size."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from eam_core.tiling import TileBatch, TileGrid, blend_weights, tiled, tiled_map, window

SIZES = [(8, 8), (5, 31), (1, 40), (32, 32), (33, 64), (47, 50), (64, 129), (97, 34), (131, 77)]
TILES = [(16, 0), (16, 6), (32, 8), (32, 24), (32, 30)]
GRIDS = [
    TileGrid(height=height, width=width, tile=tile, overlap=overlap, align=align)
    for height, width in SIZES
    for tile, overlap in TILES
    for align in (1, 2)
]


def picture(height: int, width: int, batch: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def picture_for(grid: TileGrid, **kwargs) -> torch.Tensor:
    return picture(grid.height, grid.width, **kwargs)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_cover_the_picture_with_the_overlap_asked_for(grid):
    for side, size, starts in ((grid.height, grid.tile_height, grid.tops), (grid.width, grid.tile_width, grid.lefts)):
        assert size == min(grid.tile, side)
        assert starts[0] == 0
        assert starts[-1] + size == side
        assert all(start % grid.align == 0 for start in starts[:-1])
        assert all(0 < right - left <= size - grid.overlap for left, right in pairwise(starts))
        gaps = [right - left for left, right in pairwise(starts)]
        assert max(gaps, default=0) - min(gaps, default=0) <= 2 * grid.align - 1
    assert len(set(grid.boxes)) == len(grid.tops) * len(grid.lefts)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_are_positive_and_sum_to_one(grid):
    rows, columns = blend_weights(grid)
    total = torch.zeros(grid.height, grid.width)
    places = [(row, column) for row in rows for column in columns]
    for (top, left, height, width), (row, column) in zip(grid.boxes, places, strict=True):
        weight = row[:, None] * column
        assert (weight > 0).all()
        total[top : top + height, left : left + width] += weight
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


def test_no_more_tiles_than_needed():
    assert TileGrid(height=128, width=112, tile=64, overlap=16).boxes == [
        (top, left, 64, 64) for top in (0, 32, 64) for left in (0, 48)
    ]


def test_odd_border_is_reached_by_the_last_tile_alone():
    grid = TileGrid(height=97, width=64, tile=64, overlap=16)
    assert grid.tops == [0, 33]
    assert TileGrid(height=131, width=64, tile=64, overlap=16).tops == [0, 34, 67]


@pytest.mark.parametrize("overlap", [0, 8, 16, 48])
@pytest.mark.parametrize("size", [8, 63, 64, 512])
def test_window_is_a_symmetric_hill(size, overlap):
    weights = window(size, min(overlap, size - 1))
    assert weights.shape == (size,)
    assert weights.dtype == torch.float32
    assert weights.min() > 0
    torch.testing.assert_close(weights, weights.flip(0))
    assert (weights[: size // 2].diff() > 0).all()


@pytest.mark.parametrize(("tile", "overlap"), [(64, 8), (64, 16), (64, 32), (128, 32), (512, 64)])
def test_a_tile_fades_in_without_a_step(tile, overlap):
    grid = TileGrid(height=2 * tile - overlap, width=tile, tile=tile, overlap=overlap)
    rows, _ = blend_weights(grid)
    assert rows[1, 0] < 0.0101
    assert rows[0, -1] < 0.0101


@pytest.mark.parametrize("grid", GRIDS[::3], ids=str)
@pytest.mark.parametrize("tile_batch", [1, 3])
def test_pointwise_function_comes_out_as_if_untiled(grid, tile_batch):
    x = picture_for(grid, batch=2)
    out = tiled(lambda tiles, boxes: 3 * tiles[:, :2] - 1, x, grid, tile_batch=tile_batch)
    torch.testing.assert_close(out, 3 * x[:, :2] - 1, atol=2e-5, rtol=0)


def test_one_tile_is_exactly_the_untiled_result():
    def blur(tiles, boxes):
        return F.avg_pool2d(tiles, 3, 1, 1)

    x = picture(24, 31, batch=2)
    grid = TileGrid(height=24, width=31, tile=32, overlap=8)
    assert torch.equal(tiled(blur, x, grid), blur(x, None))
    assert torch.equal(tiled(blur, x.half(), grid), blur(x.half(), None))
    assert torch.equal(tiled(blur, x.double() / 3, grid), blur(x.double() / 3, None))


@pytest.mark.parametrize("tile_batch", [2, 3, 4, 100])
def test_result_does_not_depend_on_the_tile_batch(tile_batch):
    def shade(tiles, boxes):
        assert len(tiles) == 2 * len(boxes) <= 2 * tile_batch
        return tiles - tiles.mean(dim=(1, 2, 3), keepdim=True)

    x = picture(50, 75, batch=2)
    grid = TileGrid(height=50, width=75, tile=32, overlap=8)
    alone = tiled(lambda tiles, boxes: tiles - tiles.mean(dim=(1, 2, 3), keepdim=True), x, grid)
    torch.testing.assert_close(tiled(shade, x, grid, tile_batch=tile_batch), alone)


def blur_of_limited_memory(most: int, calls: list[int]):
    """Return a network stand-in that runs out of memory with more than `most` tiles."""

    def fn(tiles, boxes):
        calls.append(len(boxes))
        if len(boxes) > most:
            raise torch.OutOfMemoryError("out of memory")
        return F.avg_pool2d(F.pad(tiles, (1, 1, 1, 1), mode="replicate"), 3, 1)

    return fn


def test_tiles_that_do_not_fit_together_run_in_smaller_batches_from_then_on():
    grid, x = TileGrid(height=40, width=64, tile=16, overlap=4), torch.randn(2, 3, 40, 64)
    expected = tiled(blur_of_limited_memory(99, []), x, grid)
    calls, batch = [], TileBatch(8)
    with pytest.warns(UserWarning, match="with 8 tiles at once; going on with 4"):
        result = tiled(blur_of_limited_memory(3, calls), x, grid, tile_batch=batch)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    assert calls[:3] == [8, 4, 2]
    assert sum(number for number in calls if number <= 3) == len(grid.boxes)
    calls.clear()
    tiled(blur_of_limited_memory(3, calls), x, grid, tile_batch=batch)
    assert max(calls) == 2, "the next step tried the large batch again"


def test_no_more_tiles_are_asked_for_than_there_are():
    grid, calls = TileGrid(height=16, width=40, tile=16, overlap=4), []
    with pytest.warns(UserWarning, match="with 3 tiles at once; going on with 1"):
        tiled(blur_of_limited_memory(1, calls), torch.randn(1, 3, 16, 40), grid, tile_batch=64)
    assert calls == [3, 1, 1, 1]


def test_one_tile_that_does_not_fit_is_an_error():
    grid, calls = TileGrid(height=16, width=32, tile=16, overlap=4), []
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="going on with 1"):
        tiled(blur_of_limited_memory(0, calls), torch.randn(1, 3, 16, 32), grid, tile_batch=2)
    assert calls == [2, 1]


def test_extras_and_boxes_belong_to_their_tiles():
    x, extra = picture(40, 56, batch=2), picture(40, 56, batch=2, channels=5) + 7
    calls = []

    def fn(tiles, extra_tiles, boxes):
        calls.append(boxes)
        for i, (top, left, height, width) in enumerate(boxes):
            area = (..., slice(top, top + height), slice(left, left + width))
            assert torch.equal(tiles[2 * i : 2 * i + 2], x[area])
            assert torch.equal(extra_tiles[2 * i : 2 * i + 2], extra[area])
        return tiles

    grid = TileGrid(height=40, width=56, tile=32, overlap=8)
    tiled(fn, x, grid, extras=(extra,), tile_batch=3)
    assert [len(boxes) for boxes in calls] == [3, 1]
    assert [box for boxes in calls for box in boxes] == grid.boxes


def test_disagreeing_tiles_blend_without_a_jump():
    grid = TileGrid(height=64, width=112, tile=64, overlap=16)
    out = tiled(lambda tiles, boxes: torch.full_like(tiles, float(boxes[0][1] > 0)), picture(64, 112, channels=1), grid)
    line = out[0, 0, 0]
    assert line[0] == 0
    assert line[-1] == 1
    assert (line.diff() >= 0).all()
    assert line.diff().max() < 0.2


def test_progress_is_told_and_can_stop_the_run():
    told = []
    x, grid = picture(50, 75), TileGrid(height=50, width=75, tile=32, overlap=8)
    tiled(lambda tiles, boxes: tiles, x, grid, tile_batch=4, on_tile=lambda *progress: told.append(progress))
    assert told == [(4, 6), (6, 6)]

    def stop(done, total):
        raise KeyboardInterrupt

    calls = []
    with pytest.raises(KeyboardInterrupt):
        tiled(lambda tiles, boxes: calls.append(1) or tiles, x, grid, on_tile=stop)
    assert len(calls) == 1


@pytest.mark.parametrize("side", [64, 200, 333])
def test_memory_follows_the_tile_not_the_picture(side):
    biggest = []

    def fn(tiles, extra, boxes):
        biggest.append(max(tiles.numel(), extra.numel()))
        return tiles

    x = picture(side, side)
    tiled(fn, x, TileGrid(height=side, width=side, tile=32, overlap=8), extras=(x,), tile_batch=2)
    assert max(biggest) == 2 * 3 * 32 * 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    x = picture(40, 40).to(dtype)
    out = tiled(lambda tiles, boxes: tiles, x, TileGrid(height=40, width=40, tile=32, overlap=8))
    assert out.dtype == dtype
    assert torch.equal(out, x) if dtype.itemsize == 2 else (out - x).abs().max() < 1e-6


def test_dtype_is_the_one_the_function_returns():
    grid = TileGrid(height=40, width=40, tile=32, overlap=8)
    assert tiled(lambda tiles, boxes: tiles.half(), picture(40, 40), grid).dtype == torch.float16


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 200), (136, 320), (16, 264)])
@pytest.mark.parametrize("overlap", [8, 20, 32])
def test_encoder_and_decoder_run_in_tiles(height, width, overlap):
    x = picture(height, width)
    shrunk = tiled_map(lambda t: F.avg_pool2d(t, 8), x, tile=96, overlap=overlap, scale=Fraction(1, 8), tile_batch=2)
    torch.testing.assert_close(shrunk, F.avg_pool2d(x, 8), atol=1e-5, rtol=0)

    def decode(latents):
        return F.interpolate(latents, scale_factor=8, mode="nearest")[:, :1]

    grown = tiled_map(decode, shrunk, tile=12, overlap=3, scale=8)
    torch.testing.assert_close(grown, decode(shrunk), atol=1e-5, rtol=0)


def test_scaled_boxes_are_the_boxes_times_the_scale():
    grid = TileGrid(height=131, width=77, tile=32, overlap=7)
    assert grid.scaled(8).boxes == [tuple(8 * n for n in box) for box in grid.boxes]
    pixels = TileGrid(height=1000, width=360, tile=256, overlap=50, align=8)
    assert pixels.scaled(Fraction(1, 8)).boxes == [tuple(n // 8 for n in box) for box in pixels.boxes]


@pytest.mark.parametrize(
    "change",
    [
        {"tile": 6},
        {"tile": 33},
        {"overlap": 32},
        {"overlap": 31},
        {"overlap": -1},
        {"height": 0},
        {"width": 0},
        {"align": 0},
    ],
    ids=str,
)
def test_impossible_grids_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        TileGrid(**{"height": 64, "width": 64, "tile": 32, "overlap": 8} | change)


def test_sizes_that_do_not_fit_are_refused():
    x, grid = picture(40, 40), TileGrid(height=40, width=40, tile=32, overlap=8)

    def same(tiles, *_):
        return tiles

    with pytest.raises(ValueError, match="make the grid from x's size"):
        tiled(same, picture(40, 41), grid)
    with pytest.raises(ValueError, match="extras"):
        tiled(same, x, grid, extras=(picture(20, 20),))
    with pytest.raises(ValueError, match="tile_batch"):
        tiled(same, x, grid, tile_batch=-1)
    with pytest.raises(ValueError, match="make fn return"):
        tiled(same, x, grid, scale=8)
    with pytest.raises(ValueError, match="multiples of 8"):
        tiled_map(same, picture(100, 96), tile=64, overlap=8, scale=Fraction(1, 8))
