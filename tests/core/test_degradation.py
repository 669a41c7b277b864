"""The degradation against reference numbers, and what a user of it relies on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from eam_core.degradation import (
    PRESETS,
    DegradationConfig,
    OrderConfig,
    degrade,
    gaussian_noise,
    jpeg,
    poisson_noise,
    simple_degrade,
)
from eam_core.degradation_kernels import blur_kernel, filter2d, pad_kernel, sharpen, sinc_kernel

GOLDEN = Path(__file__).parents[1] / "golden" / "realesrgan_kernels.safetensors"


@pytest.fixture(scope="module")
def golden():
    with safe_open(str(GOLDEN), "pt") as file:
        parameters = json.loads(file.metadata()["parameters"])
    return load_file(GOLDEN), parameters


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo_like(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return smooth blobs with hard edges on top: something a blur and a JPEG can damage."""
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=seeded(seed))
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    stripes = ((torch.arange(width) // 6) % 2).float() * 0.3
    return (image * 0.7 + stripes).clamp(0, 1)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


def test_kernels_equal_the_reference(golden):
    tensors, parameters = golden
    names = [name for name in tensors if name.startswith("kernel.")]
    assert len(names) == 41
    for name in names:
        p = parameters[name]
        if p["type"] == "sinc":
            kernel = sinc_kernel(p["kernel_size"], p["cutoff"])
            kernel = pad_kernel(kernel, p["pad_to"]) if p["pad_to"] else kernel
        else:
            kernel = blur_kernel(
                p["type"], p["kernel_size"], p["sigma_x"], p["sigma_y"], p["angle"], p.get("beta", 1.0)
            )
        torch.testing.assert_close(kernel, tensors[name], atol=1e-10, rtol=0, msg=name)


def test_filter_and_sharpener_equal_the_reference(golden):
    tensors, parameters = golden
    for key in ("filter.output_per_item", "filter.output_shared"):
        kernels = torch.stack([tensors[name] for name in parameters[key]["kernels"]])
        torch.testing.assert_close(filter2d(tensors["filter.input"], kernels), tensors[key], atol=1e-5, rtol=0)
    torch.testing.assert_close(sharpen(tensors["usm.input"]), tensors["usm.output"], atol=1e-5, rtol=0)
    strong = sharpen(tensors["usm.input"], weight=1.0, threshold=4)
    torch.testing.assert_close(strong, tensors["usm.output_w1_t4"], atol=1e-5, rtol=0)


def test_filter_takes_images_smaller_than_the_kernel():
    kernel = blur_kernel("iso", 21, 3.0)[None]
    for size in ((1, 1), (1, 5), (3, 40)):
        flat = torch.full((2, 3, *size), 0.4)
        torch.testing.assert_close(filter2d(flat, kernel), flat)


@pytest.mark.parametrize("channels", [3, 1])
def test_noise_has_the_documented_moments(channels):
    bands = (torch.tensor([0.1, 0.35, 0.6, 0.85]) * 255).round() / 255
    image = bands.repeat_interleave(128)[None, None, :, None].expand(1, 3, 512, 512).contiguous()
    expected = {"gaussian": torch.full((4,), (10 / 255) ** 2), "poisson": 0.5**2 * bands / 4}
    noise = {
        "gaussian": gaussian_noise(image, 10.0, channels, seeded(1)),
        "poisson": poisson_noise(image, 0.5, channels, seeded(2)),
    }
    for name, field in noise.items():
        per_band = field.reshape(3, 4, -1).transpose(0, 1).flatten(1)
        torch.testing.assert_close(per_band.var(dim=1), expected[name], rtol=0.03, atol=0)
        assert bool((per_band.mean(dim=1).abs() < 0.02 * expected[name].sqrt()).all())
        correlation = float(torch.corrcoef(field[0].flatten(1))[0, 1])
        assert correlation == pytest.approx(1.0 if channels == 1 else 0.0, abs=0.02)


def test_poisson_counts_the_levels_of_each_image():
    ramp = torch.arange(256).float()[None, None, None] / 255
    image = ramp.expand(1, 3, 256, 256).contiguous()
    assert float(poisson_noise(image, 1.0, 3, seeded(3)).var()) == pytest.approx(0.5 / 256, rel=0.03)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(192, 192), (61, 83), (33, 130), (9, 8)])
def test_output_size_range_and_8_bit_levels(preset, size):
    out = degrade(photo_like(*size).repeat(2, 1, 1, 1), 4, PRESETS[preset], seeded(5))
    assert out.shape == (2, 3, size[0] // 4, size[1] // 4)
    assert out.dtype == torch.float32
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    torch.testing.assert_close(out * 255, (out * 255).round(), atol=1e-4, rtol=0)


def test_same_seed_same_result_and_own_parameters_per_sample():
    images = photo_like(96, 96).repeat(2, 1, 1, 1)
    first = degrade(images, 4, PRESETS["stock"], seeded(7))
    assert torch.equal(first, degrade(images, 4, PRESETS["stock"], seeded(7)))
    assert not torch.equal(first, degrade(images, 4, PRESETS["stock"], seeded(8)))
    assert not torch.equal(first[0], first[1])


def test_presets_damage_in_the_order_of_their_names():
    images = torch.cat([photo_like(96, 96, seed) for seed in range(24)])
    clean = degrade(images, 4, PRESETS["plain"])
    score = {name: psnr(degrade(images, 4, config, seeded(9)), clean) for name, config in PRESETS.items()}
    assert score["plain"] == float("inf")
    assert score["light"] > score["stock"] + 1


def test_plain_is_the_antialiased_bicubic_reduction():
    flat_halves = torch.zeros(1, 3, 64, 64)
    flat_halves[..., 32:] = 1.0
    out = degrade(flat_halves, 4, PRESETS["plain"])
    assert torch.equal(out[..., :6], torch.zeros(1, 3, 16, 6))
    assert torch.equal(out[..., 10:], torch.ones(1, 3, 16, 6))


def test_jpeg_gets_worse_with_lower_quality():
    image = photo_like(64, 64)
    assert psnr(jpeg(image, 95), image) > psnr(jpeg(image, 60), image) > psnr(jpeg(image, 10), image)


def test_simple_degrade_obeys_each_setting():
    image = photo_like(64, 96)
    clean = simple_degrade(image, 4)
    assert torch.equal(clean, degrade(image, 4, PRESETS["plain"]))
    settings = {"blur_sigma": 3.0, "noise_sigma": 10.0, "jpeg_quality": 20}
    for name, value in settings.items():
        assert psnr(simple_degrade(image, 4, **{name: value}, generator=seeded(1)), clean) < 40, name
    noisy = simple_degrade(torch.full((1, 3, 256, 256), 0.5), 2, noise_sigma=10.0, generator=seeded(1))
    assert float(noisy.std()) * 255 == pytest.approx(10, rel=0.03)
    again = [simple_degrade(image, 4, **settings, generator=seeded(2)) for _ in range(2)]
    assert torch.equal(*again)


def test_wrong_settings_are_named():
    image = torch.rand(1, 3, 16, 16)
    for scale in (0, 17):
        with pytest.raises(ValueError, match="expected a scale between 1 and 16"):
            degrade(image, scale, PRESETS["plain"])
    with pytest.raises(ValueError, match=r"expected images \[B,3,H,W\]"):
        degrade(image[:, :1], 4, PRESETS["plain"])
    with pytest.raises(ValueError, match="two degradation orders"):
        DegradationConfig(orders=(OrderConfig(),))
    with pytest.raises(ValueError, match="resize_range"):
        OrderConfig(resize_range=(1.2, 1.5))
    with pytest.raises(ValueError, match="odd kernel size"):
        blur_kernel("iso", 8, 1.0)
