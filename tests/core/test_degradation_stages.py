"""Each stage of the degradation against reference numbers, OpenCV, Pillow or SciPy."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from scipy import special

from eam_core.degradation import resize_aliased
from eam_core.degradation_jpeg import jpeg, jpeg_each, quality_tables
from eam_core.degradation_kernels import blur_kernel, filter2d, pad_kernel, sharpen, sinc_kernel
from eam_core.degradation_noise import gaussian_noise, poisson_noise
from eam_core.images import load_image, resize
from eam_core.presets import ASSETS

GOLDEN = Path(__file__).parents[1] / "golden" / "realesrgan_kernels.safetensors"


@pytest.fixture(scope="module")
def golden():
    with safe_open(str(GOLDEN), "pt") as file:
        parameters = json.loads(file.metadata()["parameters"])
    return load_file(GOLDEN), parameters


@pytest.fixture(scope="module")
def photo():
    """The sample photo, enlarged to [1,3,256,256] and sharpened to have some detail."""
    return sharpen(resize(load_image(ASSETS / "sample_lr.png").rgb, (256, 256)).clamp(0, 1), 2.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def to_numpy(image: torch.Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).contiguous().numpy()


# Blur


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


@pytest.mark.parametrize("size", range(7, 22, 2))
def test_sinc_kernel_equals_scipys_bessel_function(size):
    axis = np.arange(size) - size // 2
    radius = np.hypot(axis[:, None], axis[None, :])
    for cutoff in np.linspace(np.pi / 5, np.pi, 5):
        with np.errstate(invalid="ignore"):
            expected = cutoff * special.j1(cutoff * radius) / (2 * np.pi * radius)
        expected[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
        expected /= expected.sum()
        np.testing.assert_allclose(sinc_kernel(size, float(cutoff)).numpy(), expected, atol=1e-12)


def test_filter_and_sharpener_equal_the_reference(golden):
    tensors, parameters = golden
    for key in ("filter.output_per_item", "filter.output_shared"):
        kernels = torch.stack([tensors[name] for name in parameters[key]["kernels"]])
        torch.testing.assert_close(filter2d(tensors["filter.input"], kernels), tensors[key], atol=1e-5, rtol=0)
    torch.testing.assert_close(sharpen(tensors["usm.input"]), tensors["usm.output"], atol=1e-5, rtol=0)
    strong = sharpen(tensors["usm.input"], weight=1.0, threshold=4)
    torch.testing.assert_close(strong, tensors["usm.output_w1_t4"], atol=1e-5, rtol=0)


def test_filter_equals_opencv(photo):
    crop = photo[..., :61, :83]
    kernel = blur_kernel("aniso", 15, 3.0, 1.0, 0.7)
    expected = cv2.filter2D(to_numpy(crop), -1, kernel.numpy(), borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(to_numpy(filter2d(crop, kernel[None])), expected, atol=1e-5)


def test_filter_takes_images_smaller_than_the_kernel():
    kernel = blur_kernel("iso", 21, 3.0)[None]
    for size in ((1, 1), (1, 5), (3, 40)):
        flat = torch.full((2, 3, *size), 0.4)
        torch.testing.assert_close(filter2d(flat, kernel), flat)


# Resize


@pytest.mark.parametrize("mode, flag", [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
@pytest.mark.parametrize("size", [(20, 41), (61, 83), (75, 120), (33, 100)])
def test_interpolation_equals_opencv(photo, mode, flag, size):
    crop = photo[..., :61, :83]
    expected = cv2.resize(to_numpy(crop), size[::-1], interpolation=flag)
    np.testing.assert_allclose(to_numpy(resize_aliased(crop, size, mode)), expected, atol=2e-5)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_area_equals_opencv_for_whole_factors(photo, factor):
    crop = photo[..., : 12 * factor, : 17 * factor]
    expected = cv2.resize(to_numpy(crop), (17, 12), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(to_numpy(resize_aliased(crop, (12, 17), "area")), expected, atol=1e-6)


# Noise


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


@pytest.mark.parametrize(
    "levels, photons", [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (128, 128), (129, 256), (256, 256)]
)
def test_poisson_counts_the_levels_of_each_image(levels, photons):
    values = (255 - torch.arange(levels)).float() / 255
    image = values.repeat(1, 3, 256, -(-256 // levels))
    other = torch.full_like(image, 0.2)
    noise = poisson_noise(torch.cat((image, other)), 1.0, 3, seeded(3))
    assert float(noise[0].var()) == pytest.approx(float(image.mean()) / photons, rel=0.03)
    assert float(noise[1].var()) == pytest.approx(0.2, rel=0.03)


# JPEG


def by_pillow(image: torch.Tensor, quality: int) -> torch.Tensor:
    file = io.BytesIO()
    pixels = np.rint(to_numpy(image) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("size", [(256, 256), (61, 83), (33, 130), (17, 16), (8, 9)])
def test_jpeg_equals_pillow(photo, size):
    # libjpeg's integer transform errs by up to an eighth, so a few coefficients round to the other side.
    noisy = (photo + gaussian_noise(photo, 10.0, 3, seeded(4))).clamp(0, 1)
    means = []
    for content in (photo, noisy):
        image = content if size[0] == 256 else content[..., 90 : 90 + size[0], 60 : 60 + size[1]]
        for quality in (30, 40, 50, 60, 75, 85, 95):
            difference = (jpeg(image, quality) - by_pillow(image, quality)).abs() * 255
            means.append(float(difference.mean()))
            assert difference.median() == 0, quality
    assert max(means) < 0.6 and sum(means) / len(means) < 0.2


@pytest.mark.parametrize("quality", [1, 25, 49, 50, 77, 95, 100])
def test_jpeg_tables_equal_those_in_pillows_files(quality):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization
    assert quality_tables(quality).int().tolist() == [list(tables[0]), list(tables[1])]


def test_jpeg_codes_pictures_of_any_sizes_together(photo):
    pictures = [photo[0, :, :40, :50], photo[0, :, 100:133, 20:37], photo[0, :, 60:100, :50]]
    qualities = [35.4, 90.0, 60.6]
    for picture, quality, coded in zip(pictures, qualities, jpeg_each(pictures, qualities)):
        assert torch.equal(coded, jpeg(picture[None], round(quality))[0])


def test_jpeg_keeps_grey_pictures_grey_and_flat_ones_flat():
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    out = jpeg(ramp, 50)
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])
    for level in (0, 255):
        flat = torch.full((1, 3, 20, 20), level / 255)
        assert torch.equal(jpeg(flat, 30), flat)
