"""The degradation as a whole: what comes out, what it depends on, and its steps against OpenCV and Pillow."""

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from eam_core import degradation
from eam_core.degradation import PRESETS, DegradationConfig, OrderConfig, degrade, simple_degrade
from eam_core.degradation_draw import draw_degradation
from eam_core.degradation_kernels import blur_kernel


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


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(192, 192), (61, 83), (33, 130), (9, 8)])
def test_output_size_range_and_8_bit_levels(preset, size):
    out = degrade(photo_like(*size).repeat(2, 1, 1, 1), 4, PRESETS[preset], [5, 6])
    assert out.shape == (2, 3, size[0] // 4, size[1] // 4)
    assert out.dtype == torch.float32
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    torch.testing.assert_close(out * 255, (out * 255).round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", range(1, 9))
def test_every_scale(preset, scale):
    image = photo_like(100, 75)
    out = degrade(image, scale, PRESETS[preset], [scale])
    assert out.shape == (1, 3, 100 // scale, 75 // scale)
    plain = degrade(image, scale, PRESETS["plain"], [0])
    assert (out - plain).abs().mean() < 0.2  # the same picture, only worse


def test_a_sample_depends_on_its_picture_config_and_seed_alone():
    images = torch.cat([photo_like(96, 130, seed) for seed in range(4)])
    configs = [PRESETS[name] for name in ("stock", "plain", "light", "stock")]
    for start in range(0, 40, 4):
        seeds = torch.arange(start, start + 4) * 7 + 2**62
        together = degrade(images, 4, configs, seeds)
        for index in range(4):
            alone = degrade(images[index : index + 1], 4, configs[index], seeds[index : index + 1])
            torch.testing.assert_close(alone[0], together[index], atol=1e-6, rtol=0)


def test_seeds_decide_everything_but_for_plain():
    images = photo_like(96, 96).repeat(3, 1, 1, 1)
    for preset in ("light", "stock"):
        first, other, again = degrade(images, 4, PRESETS[preset], [7, 8, 7])
        assert torch.equal(first, again) and psnr(first, other) < 45
    state = torch.get_rng_state()
    plain = degrade(images[:2], 4, PRESETS["plain"], [7, 8])
    assert torch.equal(plain[0], plain[1])
    assert torch.equal(state, torch.get_rng_state())


def test_presets_damage_in_the_order_of_their_names():
    images = torch.cat([photo_like(64, 64, seed) for seed in range(64)])
    clean = degrade(images, 4, PRESETS["plain"], range(64))
    score = {name: psnr(degrade(images, 4, config, range(64)), clean) for name, config in PRESETS.items()}
    assert score["plain"] == float("inf")
    assert score["light"] > score["stock"] + 0.5


def test_the_callers_images_stay_as_they_are():
    images = photo_like(64, 64)
    before = images.clone()
    for config in PRESETS.values():
        degrade(images, 4, config, [1])
        assert torch.equal(images, before)


def test_plain_is_the_antialiased_bicubic_reduction():
    flat_halves = torch.zeros(1, 3, 64, 64)
    flat_halves[..., 32:] = 1.0
    out = degrade(flat_halves, 4, PRESETS["plain"], [0])
    assert torch.equal(out[..., :6], torch.zeros(1, 3, 16, 6))
    assert torch.equal(out[..., 10:], torch.ones(1, 3, 16, 6))


def by_pillow(picture: np.ndarray, quality: float) -> np.ndarray:
    """Pass a picture [H,W,3] in [0,1] through a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(np.rint(picture.clip(0, 1) * 255).astype(np.uint8)).save(file, "JPEG", quality=round(quality))
    return np.asarray(Image.open(file), dtype=np.float32) / 255


def by_opencv(image: np.ndarray, scale: int, draw) -> np.ndarray:
    """Degrade a picture [H,W,3] in [0,1] by a record of parameters, without noise."""

    def blurred(picture, drawn):
        if drawn is None:
            return picture
        return cv2.filter2D(picture, -1, drawn.kernel().numpy(), borderType=cv2.BORDER_REFLECT_101)

    def resized(picture, height, width, mode):
        flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[mode]
        return cv2.resize(picture, (width, height), interpolation=flag)

    first, second = draw.orders
    height, width = image.shape[:2]
    small = (height // scale, width // scale)
    out = blurred(image, first.blur)
    out = resized(out, int(height * first.resize_factor), int(width * first.resize_factor), first.resize_mode)
    out = blurred(by_pillow(out, first.jpeg_quality), second.blur)
    factor = second.resize_factor
    out = resized(out, int(small[0] * factor), int(small[1] * factor), second.resize_mode).clip(0, 1)
    if draw.jpeg_first:
        out = by_pillow(out, second.jpeg_quality)
    out = blurred(resized(out, *small, draw.final_mode), draw.final_sinc)
    return out if draw.jpeg_first else by_pillow(out, second.jpeg_quality)


@pytest.mark.parametrize("scale", [2, 4])
def test_two_orders_equal_opencv_where_there_is_no_noise(scale, monkeypatch):
    # With Pillow's JPEG in both, as its rounding differs and the steps after it magnify that.
    def jpeg_each(images, qualities):
        coded = [by_pillow(image.permute(1, 2, 0).numpy(), quality) for image, quality in zip(images, qualities)]
        return [torch.from_numpy(picture).permute(2, 0, 1) for picture in coded]

    monkeypatch.setattr(degradation, "jpeg_each", jpeg_each)
    silent = {"gaussian_probability": 1.0, "gaussian_sigma": (1e-6, 1e-6)}
    config = DegradationConfig(
        orders=(OrderConfig(**silent), OrderConfig(blur_probability=0.5, resize_range=(0.3, 1.2), **silent))
    )
    image = photo_like(128, 160)
    steps, differences = [], []
    for seed in range(90):
        draw = draw_degradation(config, seed)
        modes = {draw.orders[0].resize_mode, draw.orders[1].resize_mode, draw.final_mode}
        if "area" in modes:  # OpenCV defines it otherwise where the factor is not whole
            continue
        expected = np.rint(by_opencv(image[0].permute(1, 2, 0).numpy(), scale, draw).clip(0, 1) * 255)
        out = degrade(image, scale, config, [seed])[0].permute(1, 2, 0).numpy() * 255
        differences.append(np.abs(out - expected).mean())
        steps.append((draw.jpeg_first, draw.final_sinc is None, draw.orders[1].blur is None))
    assert len(steps) >= 15 and all(len(set(column)) == 2 for column in zip(*steps))
    # Now and then a level, or a coefficient of a JPEG block, rounds to the other side.
    assert np.median(differences) < 0.01 and max(differences) < 1


def test_sharpening_comes_first_and_only_where_it_is_asked_for():
    first = OrderConfig(blur_probability=0.0, gaussian_sigma=(1e-6, 1e-6), gaussian_probability=1.0)
    config = DegradationConfig(orders=(first, first))
    sharp = DegradationConfig(orders=(first, first), sharpen_weight=0.5)
    edge = torch.full((1, 3, 64, 64), 0.3)
    edge[..., 32:] = 0.7
    soft_result, sharp_result, again = degrade(edge.repeat(3, 1, 1, 1), 2, [config, sharp, config], [3, 3, 3])
    assert sharp_result.max() > soft_result.max() + 0.03
    assert torch.equal(soft_result, again)


def test_simple_degrade_obeys_each_setting():
    image = photo_like(64, 96)
    clean = simple_degrade(image, 4)
    assert torch.equal(clean, degrade(image, 4, PRESETS["plain"], [0]))
    settings = {"blur_sigma": 3.0, "noise_sigma": 10.0, "jpeg_quality": 20}
    for name, value in settings.items():
        assert psnr(simple_degrade(image, 4, **{name: value}, generator=seeded(1)), clean) < 40, name
    noisy = simple_degrade(torch.full((1, 3, 256, 256), 0.5), 2, noise_sigma=10.0, generator=seeded(1))
    assert float(noisy.std()) * 255 == pytest.approx(10, rel=0.03)
    again = [simple_degrade(image, 4, **settings, generator=seeded(2)) for _ in range(2)]
    assert torch.equal(*again)


def test_wrong_settings_are_named():
    image = torch.rand(2, 3, 16, 6)
    for scale, largest in ((0, 6), (7, 6), (2.5, 6)):
        with pytest.raises(ValueError, match=f"expected a whole scale between 1 and {largest}, got {scale}"):
            degrade(image, scale, PRESETS["plain"], [0, 1])
    with pytest.raises(ValueError, match="between 1 and 8, got 9"):
        degrade(torch.rand(1, 3, 99, 99), 9, PRESETS["plain"], [0])
    with pytest.raises(ValueError, match=r"expected images \[B,3,H,W\]"):
        degrade(image[:, :1], 4, PRESETS["plain"], [0, 1])
    with pytest.raises(ValueError, match="expected 2 seeds, one per image, got 1"):
        degrade(image, 4, PRESETS["plain"], [0])
    with pytest.raises(ValueError, match="expected 2 configs, one per image, got 3"):
        degrade(image, 4, [PRESETS["plain"]] * 3, [0, 1])
    with pytest.raises(ValueError, match="no parameters to draw"):
        draw_degradation(PRESETS["plain"], 0)
    with pytest.raises(ValueError, match="two degradation orders"):
        DegradationConfig(orders=(OrderConfig(),))
    with pytest.raises(ValueError, match="resize_range"):
        OrderConfig(resize_range=(1.2, 1.5))
    with pytest.raises(ValueError, match="odd kernel size"):
        blur_kernel("iso", 8, 1.0)
    with pytest.raises(ValueError, match=r"JPEG quality in 1\.\.100, got 0"):
        simple_degrade(image, 2, jpeg_quality=0)
