"""Pictures of every usual kind are read right, bad ones are refused in one sentence, and files are written whole."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eam_core.errors import DiskError, ImageError
from eam_core.images import (
    MAX_EDGE,
    MIN_EDGE,
    Picture,
    check_output_path,
    check_scale,
    check_size,
    list_images,
    load_image,
    resize,
    save_image,
)


def png_bytes(width: int, height: int, bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG from its parts: Pillow cannot write every kind it reads."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def colour_image(width: int = 24, height: int = 20) -> Image.Image:
    """Red grows to the right, green downwards, blue is constant."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack((x, y, np.full_like(x, 77)), axis=-1).astype(np.uint8))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def one_sentence(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


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


def test_sizes_at_the_bounds_pass():
    check_size(MIN_EDGE, MAX_EDGE)
    check_size(8192, 8192, scale=4)
    check_size(MAX_EDGE, MIN_EDGE, scale=4)


@pytest.mark.parametrize(("height", "width", "scale"), [(8192, 8192, 4.1), (MIN_EDGE, MAX_EDGE, 8)])
def test_too_large_a_result_is_refused(height, width, scale):
    with pytest.raises(ImageError, match=f"got {round(width * scale)} x {round(height * scale)} at scale {scale}; low"):
        check_size(height, width, scale)


def test_scale_is_held_within_its_bounds():
    for scale in (1, 2.5, 4, 8):
        check_scale(scale)
    for scale in (0, 0.99, 8.01, 100, -4, float("nan"), float("inf")):
        with pytest.raises(ImageError, match=rf"expected a number from 1 to 8, got {scale:g};") as error:
            check_scale(scale)
        one_sentence(error)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0.3), (".JPG", 2), (".jpeg", 2), (".webp", 4)])
def test_what_is_saved_is_read_back(tmp_path, suffix, tolerance):
    rgb = resize(torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0)), (48, 40))
    save_image(rgb, tmp_path / f"out{suffix}")
    assert (load_image(tmp_path / f"out{suffix}").rgb - rgb).abs().mean() < tolerance / 255
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


def test_values_outside_the_range_are_clamped(tmp_path):
    save_image(torch.linspace(-1, 2, 16).expand(1, 3, 16, 16), tmp_path / "out.png")
    row = load_image(tmp_path / "out.png").rgb[0, 0, 0]
    assert row[0] == 0
    assert row[-1] == 1
    assert (row.diff() >= 0).all()


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_alpha_and_profile_survive_saving(tmp_path, suffix):
    profile = b"\0" * 16 + b"RGB " + b"\0" * 108
    alpha = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    save_image(Picture(rgb=torch.rand(1, 3, 16, 16), alpha=alpha, icc_profile=profile), tmp_path / f"out{suffix}")
    picture = load_image(tmp_path / f"out{suffix}")
    assert picture.icc_profile == profile
    assert picture.alpha is not None
    torch.testing.assert_close(picture.alpha, alpha, atol=0.51 / 255, rtol=0)


def test_jpeg_lays_transparency_on_white_and_says_so(tmp_path):
    alpha = torch.ones(1, 1, 32, 32)
    alpha[..., :16] = 0
    with pytest.warns(UserWarning, match="JPEG holds no transparency"):
        save_image(Picture(rgb=torch.zeros(1, 3, 32, 32), alpha=alpha), tmp_path / "out.jpg")
    rgb = load_image(tmp_path / "out.jpg").rgb
    assert rgb[..., :15].min() > 0.95
    assert rgb[..., 17:].max() < 0.05


@pytest.mark.parametrize("name", ["out.bmp", "out", "out.png.txt"])
def test_an_unknown_output_suffix_is_refused(tmp_path, name):
    with pytest.raises(ImageError, match=r"ending in \.png, \.jpg, \.jpeg, \.webp, got") as error:
        check_output_path(tmp_path / name)
    one_sentence(error)
    with pytest.raises(ImageError, match="ending in"):
        save_image(torch.zeros(1, 3, 16, 16), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_size_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"at most 16383 pixels for WEBP, got 16384 x 16 .*save it as \.png"):
        save_image(torch.zeros(1, 3, 16, 16_384), tmp_path / "wide.webp")
    save_image(torch.zeros(1, 3, 16, 16_383), tmp_path / "wide.webp")
    save_image(torch.zeros(1, 3, 16, 65_500), tmp_path / "wide.jpg")


def test_nan_is_refused_instead_of_written_black(tmp_path):
    with pytest.raises(ImageError, match="finite"):
        save_image(torch.full((1, 3, 16, 16), float("nan")), tmp_path / "out.png")


def save_noise(path: Path) -> None:
    save_image(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), path)


def test_a_full_disk_leaves_nothing_and_harms_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path / "old.png").write_bytes(b"the older result")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("old.png", "new.png"):
        # A limit on file sizes stops the write half way, as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(DiskError, match=rf"{name}: expected to write .*free some space") as error:
                save_noise(tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        one_sentence(error)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"the older result"


def test_whoever_reads_the_older_file_never_sees_half_of_the_new(tmp_path):
    (tmp_path / "out.png").write_bytes(b"the older result")
    with open(tmp_path / "out.png", "rb") as reader:
        save_noise(tmp_path / "out.png")
        assert reader.read() == b"the older result"
    assert load_image(tmp_path / "out.png").rgb.shape == (1, 3, 64, 64)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "out.png", tmp_path / "folder.png", tmp_path / "file" / "out.png"):
        with pytest.raises(DiskError, match=path.name) as error:
            save_noise(path)
        one_sentence(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_noise(tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(96, 120), (13, 11), (24, 90)])
@pytest.mark.parametrize(("mode", "filter_"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
def test_resize_agrees_with_pillow(size, mode, filter_):
    image = torch.rand(1, 1, 24, 30, generator=torch.Generator().manual_seed(0))
    expected = np.array(Image.fromarray(image[0, 0].numpy()).resize(size[::-1], filter_)).clip(0, 1)
    torch.testing.assert_close(resize(image, size, mode)[0, 0], torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_resize_agrees_with_pillow_on_an_8_bit_photo():
    image = colour_image(64, 48)
    for size in ((192, 256), (12, 16)):
        expected = as_tensor(image.resize(size[::-1], Image.BICUBIC))
        torch.testing.assert_close(resize(as_tensor(image), size), expected, atol=1.01 / 255, rtol=0)


def test_resize_stays_inside_the_range():
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1
    enlarged = resize(edge, (64, 64))
    assert enlarged.min() == 0
    assert enlarged.max() == 1


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
