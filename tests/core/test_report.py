"""Measures of one restoration: each moves by about as much as the fault that was put in, and the words say so."""

import math

import pytest
import torch
from torch import Tensor

from eam_core.color import lab_to_srgb, srgb_to_lab
from eam_core.color_difference import ciede2000
from eam_core.errors import ImageError
from eam_core.images import resize
from eam_core.report import Measures, color_shift, measure
from eam_core.report_text import Cost, describe, table, warnings
from eam_core.seams import seam_ratio, tile_borders
from eam_core.tiling import TileGrid

# Lab, Lab, CIEDE2000: of the test data of Sharma, Wu and Dalal 2005.
SHARMA = (
    (50, 2.6772, -79.7751, 50, 0, -82.7485, 2.0425),
    (50, -1.3802, -84.2814, 50, 0, -82.7485, 1.0000),
    (50, 0, 0, 50, -1, 2, 2.3669),
    (50, 2.49, -0.001, 50, -2.49, 0.0009, 7.1792),
    (50, 2.49, -0.001, 50, -2.49, 0.0011, 7.2195),
    (50, 2.5, 0, 73, 25, -18, 27.1492),
    (50, 2.5, 0, 56, -27, -3, 31.9030),
    (60.2574, -34.0099, 36.2677, 60.4626, -34.1751, 39.4387, 1.2644),
    (22.7233, 20.0904, -46.6940, 23.0331, 14.9730, -42.5619, 2.0373),
    (2.0776, 0.0795, -1.1350, 0.9033, -0.0636, -0.5514, 0.9082),
)
COST = Cost(seconds=1.5, num_ran=3, num_cached=1, peak_bytes=2 * 10**9, peak_of="memory", peak_is_of_run=False)
GRID = TileGrid(height=32, width=48, tile=16, overlap=4).scaled(8)


def photo(height: int = 64, width: int = 96, seed: int = 0) -> Tensor:
    """Smooth colours with a little grain, not near black or white."""
    generator = torch.Generator().manual_seed(seed)
    smooth = resize(torch.rand(1, 3, 5, 7, generator=generator), (height, width))
    return 0.15 + 0.7 * smooth + 0.02 * torch.rand(1, 3, height, width, generator=generator)


def result(original: Tensor, scale: int = 4) -> Tensor:
    height, width = original.shape[-2:]
    return resize(original, (height * scale, width * scale))


def test_ciede2000_has_the_published_values() -> None:
    data = torch.tensor(SHARMA, dtype=torch.float64)
    assert torch.allclose(ciede2000(data[:, :3], data[:, 3:6]), data[:, 6], atol=1e-4)
    assert torch.allclose(ciede2000(data[:, 3:6], data[:, :3]), data[:, 6], atol=1e-4)


def test_a_faithful_result_measures_well() -> None:
    original = photo()
    measures = measure(result(original), original)
    assert (measures.width, measures.height, measures.scale) == (384, 256, 4)
    assert measures.state == "ok" and warnings(measures) == []
    assert measures.psnr > 35 and measures.ssim > 0.95 and measures.color_shift < 0.3
    assert measures.seams is None and "connect the sampler's model" in describe([measures], COST)


def test_psnr_is_the_evaluations_psnr_lr() -> None:
    metrics = pytest.importorskip("train.evaluation.metrics")
    original = photo()
    restored = (result(original) + 0.05).clamp(0, 1)
    score, _ = metrics.METRICS["psnr-lr"].load("cpu")
    assert measure(restored, original).psnr == pytest.approx(score(restored, original))
    assert measure(original, original).psnr == 80


@pytest.mark.parametrize("shift", [(0.0, 4.0, 0.0), (0.0, 0.0, -6.0), (3.0, 0.0, 0.0)])
def test_a_cast_raises_the_color_shift_by_its_size(shift: tuple[float, ...]) -> None:
    grey = torch.full((1, 3, 64, 64), 0.5)
    cast = lab_to_srgb(srgb_to_lab(result(grey)) + torch.tensor(shift)[None, :, None, None])
    expected = ciede2000(srgb_to_lab(cast[..., :1, :1]), srgb_to_lab(grey[..., :1, :1])).item()
    assert expected > 1
    assert color_shift(cast, grey) == pytest.approx(expected, rel=0.02)


def test_detail_and_noise_hardly_shift_colors() -> None:
    original = photo()
    noisy = original + 0.1 * torch.randn(original.shape, generator=torch.Generator().manual_seed(2))
    assert color_shift(result(original), noisy) < 1.5
    assert color_shift(result(original), original) < 0.3


def test_borders_lie_where_tiles_begin_and_end() -> None:
    rows, columns = tile_borders(GRID)
    assert rows == sorted({edge for top in GRID.tops for edge in (top, top + 128)} - {0, 256})
    assert columns == sorted({edge for left in GRID.lefts for edge in (left, left + 128)} - {0, 384})


def test_a_seam_raises_the_measure_and_a_picture_without_has_about_one() -> None:
    picture = result(photo())
    picture += 0.02 * torch.rand(picture.shape, generator=torch.Generator().manual_seed(1))
    ratios = [seam_ratio(picture, GRID, 16)]
    for levels in (2, 6):
        patched = picture.clone()
        for index, edge in enumerate(tile_borders(GRID)[1]):
            patched[..., edge:] += (-1) ** index * levels / 255
        ratios.append(seam_ratio(patched, GRID, 16))
    assert ratios[0] == pytest.approx(1, abs=0.06)
    assert ratios[0] < ratios[1] < ratios[2] and ratios[2] > 1.5


def test_steps_of_the_raster_are_no_seams() -> None:
    blocks = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    blocky = blocks.repeat_interleave(16, -1).repeat_interleave(16, -2)
    assert seam_ratio(blocky, GRID, 16) == pytest.approx(1, abs=0.1)


def test_nothing_to_compare_gives_no_measure() -> None:
    assert seam_ratio(torch.zeros(1, 3, 256, 384), GRID, 16) is None
    assert seam_ratio(photo(64, 64), TileGrid(height=64, width=64, tile=64, overlap=0), 16) is None
    with pytest.raises(ValueError, match="scale the grid"):
        seam_ratio(photo(64, 64), GRID, 16)


def test_broken_values_are_named() -> None:
    original = photo()
    broken = result(original)
    broken[..., :64, :] = math.nan
    measures = measure(broken, original, GRID)
    assert (measures.state, measures.psnr, measures.seams) == ("not finite", None, None)
    assert measures.not_finite == pytest.approx(0.25)
    assert "25.00% of the values are NaN" in describe([measures], COST) and "--fp32-vae" in describe([measures], COST)
    black = measure(torch.zeros_like(broken), original)
    assert black.state == "black" and "half precision" in warnings(black)[0]
    flat = measure(torch.full_like(broken, 0.5), original)
    assert flat.state == "one color" and len(warnings(flat)) == 1
    for level in (0.0, 0.5):
        like_its_input = torch.full_like(original, level)
        assert measure(result(like_its_input), like_its_input).state == "ok"


@pytest.mark.parametrize(
    ("restored", "original", "message"),
    [
        ((1, 3, 32, 32), (1, 3, 64, 64), "at least as large .* got 32 x 32 from 64 x 64"),
        ((1, 3, 256, 256), (1, 3, 64, 96), "proportions, got 256 x 256 from 96 x 64"),
        ((3, 3, 64, 64), (2, 3, 64, 64), "one original or as many as restored images, got 2 for 3"),
    ],
)
def test_pairs_that_do_not_belong_together_are_refused(restored, original, message) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        measure(torch.zeros(restored), torch.zeros(original))
    assert str(caught.value).count(". ") == 0


def test_words_and_table_tell_time_memory_and_each_picture() -> None:
    one = Measures(width=64, height=64, input_width=16, input_height=16, state="ok", psnr=30.123, color_shift=6.0)
    text = describe([one, one], COST)
    assert text.count("Warning: Picture 2: the colors shifted") == 1
    assert "Picture 1: 64 x 64 pixels from 16 x 16, scale 4." in text
    assert "took 1.50 s up to here; 1 of the 4 nodes before this one came from the cache" in text
    assert "2.00 GB of memory" in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table([one, one], COST).splitlines()]
    assert len(rows) == 4 and {len(row) for row in rows} == {11} and set(rows[1]) == {"---"}
    assert rows[3] == ["2", "64 x 64", "16 x 16", "4", "30.12", "-", "6.00", "-", "ok", "1.50", "2.00"]


def test_a_cached_run_has_no_invented_time() -> None:
    one = Measures(width=64, height=64, input_width=16, input_height=16, state="ok", psnr=30.0, color_shift=0.5)
    cost = Cost(seconds=0.01, num_ran=0, num_cached=4, peak_bytes=10**9, peak_of="GPU memory", peak_is_of_run=True)
    text = describe([one], cost)
    assert "from the cache" in text and "0.01" not in text and "GPU" not in text
    assert table([one], cost).endswith("| cached | cached |")
