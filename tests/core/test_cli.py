"""The command line as its users meet it: results, exit status, and nothing half written."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import FAST, call, make_bad_pictures, pixels, refused, write
from PIL import Image

from eam_core.color import COLOR_FIXES
from eam_core.images import load_image
from eam_core.pipeline import Restorer


def test_restores_a_file_and_says_where_it_is(upscale, tmp_path):
    source, target = write(tmp_path / "in.png"), tmp_path / "out.png"
    status, out, err = upscale(source, target)
    assert (status, err) == (0, "")
    assert out.startswith(f"{target}: 56 x 40 in ")
    assert load_image(target).rgb.shape == (1, 3, 40, 56)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_same_seed_same_picture_whatever_the_tile_batch(upscale, tiny_options, tmp_path):
    source = write(tmp_path / "in.png")
    options = [*tiny_options, "--tile", "64", "--overlap", "32", "--scale", "4"]
    results = []
    for name, changes in {"a": [], "b": [], "c": ["--tile-batch", "4"], "d": ["--seed", "1"]}.items():
        assert upscale(source, tmp_path / f"{name}.png", options=[*options, *changes])[0] == 0
        results.append(load_image(tmp_path / f"{name}.png").rgb)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1.5 / 255)
    assert (results[3] - results[0]).abs().mean() > 1e-3


def test_subprocess_restores_a_picture(tiny_options, tmp_path):
    source, target = write(tmp_path / "in.jpg"), tmp_path / "out.webp"
    done = call("upscale", source, target, *FAST, *tiny_options)
    assert (done.returncode, done.stderr) == (0, "")
    assert Image.open(target).size == (56, 40)


def test_help_is_quick_and_names_every_choice():
    start = time.monotonic()
    done = call("upscale", "--help")
    assert time.monotonic() - start < 1.5
    assert done.returncode == 0
    assert all(name in done.stdout for name in COLOR_FIXES)
    check = "import sys, eam_core.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", check], timeout=60).returncode == 0


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_colour_mode_is_restored(upscale, tmp_path, mode):
    source = tmp_path / ("in.tif" if mode == "CMYK" else "in.png")
    if mode == "I;16":
        Image.fromarray(pixels(channels=1)[..., 0].astype(np.uint16) * 257).save(source)
    else:
        write(source, mode)
    status, _, err = upscale(source, tmp_path / "out.png")
    assert (status, err) == (0, "")
    with Image.open(tmp_path / "out.png") as result:
        assert result.size == (56, 40)
        assert result.mode == ("RGBA" if "A" in mode else "RGB")


def test_transparency_is_kept(upscale, tmp_path):
    image = Image.fromarray(pixels()).convert("RGBA")
    image.paste((10, 20, 30, 0), (0, 0, 14, 20))
    image.save(tmp_path / "in.png")
    assert upscale(tmp_path / "in.png", tmp_path / "out.png")[0] == 0
    alpha = np.asarray(Image.open(tmp_path / "out.png"))[..., 3]
    assert alpha[:, :24].max() < 10 and alpha[:, 32:].min() > 245
    status, _, err = upscale(tmp_path / "in.png", tmp_path / "out.jpg")
    assert status == 0
    assert err.startswith("warning: ") and "transparency" in err and len(err.splitlines()) == 1


def test_exif_rotation_is_honoured(upscale, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    write(tmp_path / "in.jpg", exif=exif)
    assert upscale(tmp_path / "in.jpg", tmp_path / "out.png")[0] == 0
    assert Image.open(tmp_path / "out.png").size == (40, 56)


def test_disk_that_fills_up_leaves_nothing_behind(upscale, tmp_path, monkeypatch):
    source = write(tmp_path / "in.png")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refused(upscale(source, tmp_path / "out.png"), "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_folder_goes_on_past_bad_files(upscale, tmp_path):
    folder, results = tmp_path / "in", tmp_path / "results"
    folder.mkdir()
    make_bad_pictures(folder)
    for name in ("10.png", "2.png", "b.tif", "b.jpg"):
        write(folder / name)
    (folder / "notes.txt").write_text("not a picture, and not named as one")
    status, out, err = upscale(folder, results)
    assert status == 1
    assert [Path(line.split(":")[0]).name for line in out.splitlines()] == ["2.png", "10.png", "b.jpg", "b.png"]
    assert sorted(path.name for path in results.iterdir()) == ["10.png", "2.png", "b.jpg", "b.png"]
    for name in ("text.png", "short.png", "empty.png", "dot.png", "wide.png"):
        assert sum(name in line for line in err.splitlines()) == 1
    assert err.splitlines()[-1].startswith("error: 5 of 9 pictures")


def test_two_inputs_of_one_name_have_results_of_their_own(upscale, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.bmp")
    write(folder / "a.png")
    status, _, err = upscale(folder, tmp_path / "results")
    assert (status, err) == (0, "")
    results = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert len(results) == 2 and "a.png" in results


def test_folder_of_good_files_exits_with_0_and_file_into_folder_keeps_its_name(upscale, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.png")
    assert upscale(folder, tmp_path / "results")[0] == 0
    assert upscale(folder / "a.png", tmp_path)[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "results" / "a.png").read_bytes()


def test_interrupt_leaves_nothing_behind(upscale, tmp_path, monkeypatch):
    source = write(tmp_path / "in.png")

    def interrupted(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Restorer, "restore_picture", interrupted)
    status, _, err = upscale(source, tmp_path / "out.png")
    assert (status, err) == (130, "stopped\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]
