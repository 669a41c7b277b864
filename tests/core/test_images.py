"""Pictures of every usual kind are read right, and bad ones are refused in one sentence."""

import struct

import numpy as np
import pytest
import torch
from picture_files import as_tensor, colour_image, one_sentence, png_bytes
from PIL import Image

from eam_core.errors import ImageError
from eam_core.images import (
    Picture,
    list_images,
    load_image,
)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_rgb_is_read_exactly(tmp_path, suffix):
    path = tmp_path / f"photo{suffix}"
    colour_image().save(path, **({"lossless": True} if suffix == ".webp" else {}))
    picture = load_image(path)
    assert picture.rgb.dtype == torch.float32
    assert torch.equal(picture.rgb, as_tensor(colour_image()))
    assert picture.alpha is None


def test_the_content_decides_not_the_suffix(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    colour_image().save(path, format="PNG")
    assert torch.equal(load_image(path).rgb, as_tensor(colour_image()))


def test_grey_gets_three_equal_channels(tmp_path):
    grey = colour_image().convert("L")
    grey.save(tmp_path / "grey.png")
    assert torch.equal(load_image(tmp_path / "grey.png").rgb, as_tensor(grey.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_keeps_its_depth(tmp_path, suffix):
    values = np.linspace(0, 65_535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    rgb = load_image(tmp_path / f"deep{suffix}").rgb
    expected = torch.from_numpy(values.astype(np.float32) / 65_535).expand(1, 3, -1, -1)
    torch.testing.assert_close(rgb, expected, atol=1e-7, rtol=0)


def test_16_bit_rgb_is_not_clipped_to_white(tmp_path):
    row = b"\0" + struct.pack(">3H", 0x4000, 0x8000, 0xFFFF) * 16
    (tmp_path / "deep.png").write_bytes(png_bytes(16, 16, 16, 2, row * 16))
    colour = load_image(tmp_path / "deep.png").rgb[0, :, 5, 5]
    torch.testing.assert_close(colour, torch.tensor([0.25, 0.5, 1.0]), atol=1 / 255, rtol=0)


def test_float_pictures_are_read_in_range_and_refused_beyond(tmp_path):
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert torch.equal(load_image(tmp_path / "float.tif").rgb[0, 1], torch.from_numpy(values))
    Image.fromarray(values * 255).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"floats in \[0, 1\]") as error:
        load_image(tmp_path / "float.tif")
    one_sentence(error)


def test_palette_with_a_transparent_entry(tmp_path):
    indices = Image.fromarray((np.indices((16, 16)).sum(0) % 2).astype(np.uint8), mode=None).convert("P")
    indices.putpalette([255, 0, 0, 0, 0, 255])
    indices.save(tmp_path / "palette.png", transparency=1)
    picture = load_image(tmp_path / "palette.png")
    assert picture.rgb[0, :, 0, 0].tolist() == [1, 0, 0]
    assert picture.rgb[0, :, 0, 1].tolist() == [0, 0, 1]
    assert picture.alpha is not None
    assert picture.alpha[0, 0, 0, :2].tolist() == [1, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept_apart(tmp_path, mode):
    image = colour_image().convert(mode)
    image.putalpha(Image.fromarray(np.arange(20 * 24, dtype=np.uint16).astype(np.uint8).reshape(20, 24)))
    image.save(tmp_path / "alpha.png")
    picture = load_image(tmp_path / "alpha.png")
    rgba = as_tensor(image.convert("RGBA"))
    assert picture.alpha is not None
    assert torch.equal(picture.rgb, rgba[:, :3])
    assert torch.equal(picture.alpha, rgba[:, 3:])


def test_cmyk_becomes_rgb_without_its_cmyk_profile(tmp_path):
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    ink.save(tmp_path / "ink.jpg", quality=100, icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 108)
    picture = load_image(tmp_path / "ink.jpg")
    torch.testing.assert_close(picture.rgb[0, :, 8, 8], torch.tensor([0.0, 1.0, 1.0]), atol=0.02, rtol=0)
    assert picture.icc_profile is None


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_orientation_is_honoured(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
    path = tmp_path / f"turned{suffix}"
    colour_image(width=40, height=24).save(path, exif=exif, quality=95)
    rgb = load_image(path).rgb
    assert rgb.shape == (1, 3, 40, 24)
    assert rgb[0, 0, -2].mean() > 0.9 > 0.1 > rgb[0, 0, 1].mean()  # red grew to the right, so now downwards


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"film{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    torch.testing.assert_close(load_image(path).rgb[0, :, 8, 8], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: expected a picture, found no such file") as error:
        load_image(tmp_path / "nowhere.png")
    one_sentence(error)
    with pytest.raises(ImageError, match="expected a picture, got a folder") as error:
        load_image(tmp_path)
    one_sentence(error)


@pytest.mark.parametrize("content", [b"", b"Dear diary", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n"])
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "notes.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"notes\.png: expected a PNG, JPEG.*got something else") as error:
        load_image(tmp_path / "notes.png")
    one_sentence(error)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="damaged file") as error:
        load_image(path)
    one_sentence(error)


def test_one_pixel_is_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(ImageError, match=r"expected edges of 16 to 16384 pixels, got 1 x 1 .* larger picture") as error:
        load_image(tmp_path / "dot.png")
    one_sentence(error)


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (30_000, 20, "got 30000 x 20 .* crop or shrink"),
        (12_000, 9_000, "at most 67 million pixels, got 12000 x 9000"),
        (60_000, 60_000, "at most 67 million pixels, got more than twice as many"),
    ],
)
def test_too_large_is_refused_from_the_header_alone(tmp_path, recwarn, width, height, message):
    # There are no pixels in this file: decoding it would call it damaged.
    (tmp_path / "wide.png").write_bytes(png_bytes(width, height, 8, 2, b""))
    with pytest.raises(ImageError, match=message) as error:
        load_image(tmp_path / "wide.png")
    one_sentence(error)
    assert not recwarn.list


def test_images_are_listed_in_natural_order(tmp_path):
    names = ["a.JPG", "img2.png", "img10.png", "IMG11.webp", "z 1.tif"]
    for name in [*reversed(names), "notes.txt", ".hidden.png", "no_suffix"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == names


def test_listing_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ImageError, match="expected a folder of pictures") as error:
            list_images(folder)
        one_sentence(error)


def test_a_picture_checks_its_shapes():
    with pytest.raises(ValueError, match=r"\[1,3,H,W\], got \(3, 16, 16\)"):
        Picture(rgb=torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match=r"alpha of shape \(1, 1, 16, 16\), got \(1, 1, 8, 8\)"):
        Picture(rgb=torch.zeros(1, 3, 16, 16), alpha=torch.zeros(1, 1, 8, 8))
