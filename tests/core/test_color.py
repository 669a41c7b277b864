"""The colour fix takes the reference's colours, leaves the image's detail, and meets the published numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eam_core.color import (
    COLOR_FIXES,
    adain_color_fix,
    apply_color_fix,
    color_fix_in_place,
    lab_color_fix,
    lab_to_srgb,
    srgb_to_lab,
    wavelet_color_fix,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "color.safetensors"
FIXES = [wavelet_color_fix, adain_color_fix, lab_color_fix]


def smooth_image(height: int = 96, width: int = 80) -> torch.Tensor:
    """Two slow waves per channel, well inside [0,1]."""
    y = torch.linspace(0, 3, height)[:, None]
    x = torch.linspace(0, 2, width)[None]
    return torch.stack([0.5 + 0.1 * torch.sin(y + k) + 0.1 * torch.cos(x - k) for k in range(3)])[None]


def fine_detail(height: int = 96, width: int = 80) -> torch.Tensor:
    """A grey checkerboard of single pixels, mean zero."""
    parity = torch.arange(height)[:, None] + torch.arange(width)[None]
    return 0.05 * (1 - 2 * (parity % 2)).float().expand(1, 3, -1, -1)


@pytest.mark.parametrize(("fix", "key"), [(adain_color_fix, "adain"), (wavelet_color_fix, "wavelet")])
def test_meets_the_reference_implementation(fix, key):
    golden = load_file(GOLDEN)
    torch.testing.assert_close(fix(golden["result"], golden["lr_upscaled"]), golden[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize("fix", [wavelet_color_fix, adain_color_fix])
def test_a_colour_cast_is_removed(fix):
    reference = smooth_image()
    cast = torch.tensor([0.15, -0.05, -0.1]).view(1, 3, 1, 1)
    fixed = fix(reference + cast, reference)
    torch.testing.assert_close(fixed, reference, atol=1e-4, rtol=0)


def test_lab_removes_the_tint_and_keeps_the_lightness():
    reference = smooth_image()
    tinted = reference + torch.tensor([0.15, -0.05, -0.1]).view(1, 3, 1, 1)
    before, wanted = srgb_to_lab(tinted), srgb_to_lab(reference)
    after = srgb_to_lab(lab_color_fix(tinted, reference))
    torch.testing.assert_close(after[:, :1], before[:, :1], atol=0.01, rtol=0)
    assert (before[:, 1:] - wanted[:, 1:]).abs().mean() > 10
    assert (after[:, 1:] - wanted[:, 1:]).abs().max() < 1  # about the least difference that is seen


@pytest.mark.parametrize("fix", [wavelet_color_fix, lab_color_fix])
def test_fine_detail_survives(fix):
    reference, detail = smooth_image(), fine_detail()
    fixed = fix(reference + detail + 0.05, reference)
    checker = (fixed * detail.sign()).mean(dim=(2, 3))
    torch.testing.assert_close(checker, torch.full_like(checker, 0.05), atol=2e-3, rtol=0)


def test_adain_keeps_the_pattern_and_takes_the_contrast():
    reference = smooth_image()
    fixed = adain_color_fix(0.3 + 0.4 * reference.flip(-1), reference)
    torch.testing.assert_close(fixed, reference.flip(-1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("fix", FIXES)
def test_an_image_that_is_its_reference_stays_as_it_is(fix):
    image = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fix(image, image), image, atol=2e-5, rtol=0)


@pytest.mark.parametrize("fix", FIXES)
def test_images_of_a_batch_do_not_mix(fix):
    generator = torch.Generator().manual_seed(0)
    image, reference = (torch.rand(2, 3, 24, 16, generator=generator) for _ in range(2))
    alone = torch.cat([fix(image[i : i + 1], reference[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(fix(image, reference), alone, atol=1e-5, rtol=0)


def test_lab_meets_published_values():
    colours = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).T.reshape(1, 3, 1, 4)
    expected = torch.tensor([[100.0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [0, 0, 0]])
    torch.testing.assert_close(srgb_to_lab(colours), expected.T.reshape(1, 3, 1, 4), atol=0.01, rtol=0)


def test_lab_returns_even_out_of_range_colours():
    colours = torch.linspace(-0.5, 1.5, 3 * 64).reshape(1, 3, 8, 8)
    torch.testing.assert_close(lab_to_srgb(srgb_to_lab(colours)), colours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", COLOR_FIXES)
def test_the_named_fix_ends_inside_the_range(method):
    golden = load_file(GOLDEN)
    fixed = apply_color_fix(golden["result"] * 1.5 - 0.25, golden["lr_upscaled"], method)
    assert fixed.shape == golden["result"].shape
    assert fixed.min() >= 0
    assert fixed.max() <= 1


def test_the_name_picks_the_function():
    golden = load_file(GOLDEN)
    image, reference = golden["result"], golden["lr_upscaled"]
    assert torch.equal(apply_color_fix(image, reference, "none"), image.clamp(0, 1))
    for method, fix in zip(COLOR_FIXES[1:], FIXES, strict=True):
        assert torch.equal(apply_color_fix(image, reference, method), fix(image, reference).clamp(0, 1))


@pytest.mark.parametrize("method", COLOR_FIXES)
@pytest.mark.parametrize("num_rows", [1, 7, 40, 96, 500])
def test_strips_in_place_give_the_same_bits(method, num_rows):
    torch.manual_seed(0)
    image, reference = torch.rand(2, 2, 3, 96, 40) * 1.2 - 0.1
    expected = apply_color_fix(image, reference, method)
    before = reference.clone()
    fixed = color_fix_in_place(image, reference, method, num_rows=num_rows)
    assert fixed is image
    assert torch.equal(fixed, expected)
    assert torch.equal(reference, before)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"none, wavelet, adain, lab, got 'hsv'"):
        apply_color_fix(smooth_image(), smooth_image(), "hsv")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", COLOR_FIXES)
def test_another_size_is_refused(method):
    with pytest.raises(ValueError, match=r"expected a reference .*\(1, 3, 96, 80\), got \(1, 3, 48, 40\); resize"):
        apply_color_fix(smooth_image(), smooth_image(48, 40), method)
