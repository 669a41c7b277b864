"""Pictures are written whole or not at all, and read back as they were."""

from pathlib import Path

import pytest
import torch
from broken_pictures import icc
from picture_files import one_sentence

from eam_core.errors import DiskError, ImageError
from eam_core.images import (
    Picture,
    check_output_path,
    load_image,
    resize,
    save_image,
)


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
    profile = icc(space=b"RGB ")
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
