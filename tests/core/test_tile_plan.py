"""Tiles no larger than needed: as many as before, and the same picture from the embedded autoencoder."""

import math
from itertools import pairwise

import pytest
import torch

from eam_core.flow import schedule
from eam_core.images import load_image, resize
from eam_core.pipeline import AUTOENCODER_TILE, Restorer, autoencoder_tiles
from eam_core.presets import ASSETS
from eam_core.tile_plan import fitting_tile, meeting_tiles, overlapping_tiles, overlaps_in
from eam_core.tiling import TileGrid, tiled_map


@pytest.mark.parametrize(
    ("height", "width"), [(2000, 2000), (4000, 1200), (1032, 4008), (1024, 1024), (64, 5000), (1000, 2050)]
)
@pytest.mark.parametrize(("tile", "overlap", "align"), [(1024, 48, 8), (1024, 100, 8), (128, 6, 1), (256, 64, 16)])
def test_the_smallest_tile_of_the_same_number(height, width, tile, overlap, align):
    def tiles(side):
        grid = TileGrid(height=height, width=width, tile=side, overlap=overlap, align=align)
        return len(grid.tops), len(grid.lefts)

    fitting = fitting_tile(height, width, tile=tile, overlap=overlap, align=align)
    assert fitting <= tile and fitting % align == 0
    assert tiles(fitting) == tiles(tile)
    if tiles(tile) != (1, 1):
        assert tiles(fitting - align) != tiles(tile)


def test_little_is_computed_twice_by_the_autoencoder():
    autoencoder = Restorer.embedded().autoencoder
    for side in (2000, 4000, 8000):
        tile, overlap = autoencoder_tiles(autoencoder, side, side, align=8)
        num_tiles = len(TileGrid(height=side, width=side, tile=tile, overlap=overlap, align=8).boxes)
        assert tile <= AUTOENCODER_TILE
        assert num_tiles * tile**2 <= 1.12 * side**2


@torch.no_grad()
def test_tiles_of_the_embedded_autoencoder_give_the_whole_picture_within_a_grey_level():
    autoencoder = Restorer.embedded().autoencoder
    picture = resize(load_image(ASSETS / "sample_lr.png").rgb, (512, 512)).clamp(0, 1) * 2 - 1
    overlap = autoencoder.tile_overlap
    latents = autoencoder.encode_degraded(picture)
    whole = autoencoder.decode(latents)
    tile = (512 + overlap) // 2 // 8
    parts = tiled_map(autoencoder.decode, latents, tile=tile, overlap=overlap // 8, scale=8)
    error = 127.5 * (parts - whole).abs()
    assert error.max() < 1
    assert math.sqrt(error.square().mean()) < 0.05
    # Tiles that share nothing would show.
    apart = tiled_map(autoencoder.decode, latents, tile=32, overlap=0, scale=8)
    assert 127.5 * (apart - whole).abs().max() > 5


GRIDS = [
    TileGrid(height=128, width=128, tile=32, overlap=8),
    TileGrid(height=64, width=64, tile=32, overlap=8),
    TileGrid(height=24, width=200, tile=32, overlap=8),
    TileGrid(height=100, width=300, tile=128, overlap=24),
    TileGrid(height=128, width=512, tile=128, overlap=24),
    TileGrid(height=137, width=90, tile=32, overlap=8),
    TileGrid(height=140, width=139, tile=128, overlap=32),
    TileGrid(height=192, width=192, tile=128, overlap=24),
    TileGrid(height=40, width=40, tile=8, overlap=4, align=1),
]


@pytest.mark.parametrize("grid", GRIDS)
def test_meeting_tiles_cover_the_picture_and_never_cost_more(grid):
    for step in range(4):
        tiles = meeting_tiles(grid, step)
        covered = torch.zeros(grid.height, grid.width)
        for top, left, height, width in tiles.boxes:
            assert height <= grid.tile and width <= grid.tile
            covered[top : top + height, left : left + width] = 1
        assert covered.all()
        assert 0.75 * grid.tile <= tiles.tile <= grid.tile and tiles.tile % grid.align == 0
        assert tiles.num_pixels <= overlapping_tiles(grid).num_pixels


@pytest.mark.parametrize("grid", GRIDS)
def test_borders_move_from_step_to_step_or_tiles_overlap(grid):
    even, odd = meeting_tiles(grid, 0), meeting_tiles(grid, 1)
    for starts, others, length in ((even.tops, odd.tops, even.tile_height), (even.lefts, odd.lefts, even.tile_width)):
        overlapping = overlapping_tiles(grid)
        assert even == overlapping or odd == overlapping or len(starts) == 1 or {*starts[1:]} != {*others[1:]}, length
    assert meeting_tiles(grid, 2) == even


def test_how_many_tiles_are_saved():
    grid = TileGrid(height=128, width=128, tile=32, overlap=8)
    assert [meeting_tiles(grid, step).num_pixels for step in (0, 1)] == [16 * 32**2, 25 * 26**2]
    assert overlapping_tiles(grid) == grid and grid.num_pixels == 25 * 32**2
    # Three along each side are needed, and 22 are enough; 24 are three quarters.
    grid = TileGrid(height=50, width=50, tile=32, overlap=8)
    assert overlapping_tiles(grid).boxes[:2] == [(0, 0, 30, 30), (0, 20, 30, 30)]
    assert overlapping_tiles(TileGrid(height=64, width=64, tile=32, overlap=8)).num_pixels == 9 * 28**2


@pytest.mark.parametrize("grid", GRIDS)
def test_tiles_that_overlap_are_as_many_and_no_larger(grid):
    tiles = overlapping_tiles(grid)
    assert len(tiles.tops) <= len(grid.tops) and len(tiles.lefts) <= len(grid.lefts)
    assert 0.75 * grid.tile <= tiles.tile <= grid.tile and tiles.tile % grid.align == 0
    for starts, side in ((tiles.tops, tiles.tile_height), (tiles.lefts, tiles.tile_width)):
        assert all(start + side - other >= grid.overlap for start, other in pairwise(starts))


def test_one_tile_and_borders_that_could_not_move_keep_the_grid():
    for grid in (
        TileGrid(height=32, width=20, tile=32, overlap=8),
        TileGrid(height=192, width=192, tile=128, overlap=24),
    ):
        assert meeting_tiles(grid, 0) == meeting_tiles(grid, 1) == overlapping_tiles(grid)


def test_tiles_overlap_in_the_last_step_and_where_little_noise_is_left():
    few = schedule(4, 1.0, 1.0)[:-1].tolist()
    assert [overlaps_in(sigma, few[-1]) for sigma in few] == [False, False, False, True]
    # DiT4SR's schedule ends in a step that changes next to nothing.
    many = schedule(40, 3.0, scheduler="normal")[:-1].tolist()
    blended = [sigma for sigma in many if overlaps_in(sigma, many[-1])]
    assert many[-1] < 0.01 < 0.05 < blended[0] <= 0.15
    assert 2 <= len(blended) <= 4
