"""The command line as its users meet it: results, exit status, one sentence per mistake, nothing half written."""

import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from eam_core import cli, images
from eam_core.color import COLOR_FIXES
from eam_core.images import load_image
from eam_core.model.mmdit import MMDiTParams
from eam_core.pipeline import Restorer
from eam_core.weight_files import save_weights

FAST = ["--scale", "2", "--steps", "1", "--tile", "128", "--device", "cpu"]


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def own(files):
    """Options that name the tiny model."""
    return ["--base", str(files.base), "--control", str(files.control), "--autoencoder", str(files.autoencoder)]


@pytest.fixture
def run(own, capsys):
    """Run the command line in this process; return exit status, stdout and stderr."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*args, options=own):
        try:
            status = cli.main(["upscale", *map(str, args), *FAST, *options])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)


def pixels(height=20, width=28, channels=3, seed=0):
    shape = (height // 4, width // 4, channels)
    rough = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return rough.repeat(4, axis=0).repeat(4, axis=1)


def write(path, mode="RGB", **options):
    Image.fromarray(pixels()).convert(mode).save(path, **options)
    return path


def refused(result, *words):
    """Check that a run ended with exit status 2 and one sentence that has all the words."""
    status, out, err = result
    assert status == 2, err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for word in ("expected", *words):
        assert word in lines[0]


def test_restores_a_file_and_says_where_it_is(run, tmp_path):
    source, target = write(tmp_path / "in.png"), tmp_path / "out.png"
    status, out, err = run(source, target)
    assert (status, err) == (0, "")
    assert out.startswith(f"{target}: 56 x 40 in ")
    assert load_image(target).rgb.shape == (1, 3, 40, 56)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_same_seed_same_picture_whatever_the_tile_batch(run, own, tmp_path):
    source = write(tmp_path / "in.png")
    options = [*own, "--tile", "64", "--overlap", "32", "--scale", "4"]
    results = []
    for name, changes in {"a": [], "b": [], "c": ["--tile-batch", "4"], "d": ["--seed", "1"]}.items():
        assert run(source, tmp_path / f"{name}.png", options=[*options, *changes])[0] == 0
        results.append(load_image(tmp_path / f"{name}.png").rgb)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1.5 / 255)
    assert (results[3] - results[0]).abs().mean() > 1e-3


def test_subprocess_restores_a_picture(own, tmp_path):
    source, target = write(tmp_path / "in.jpg"), tmp_path / "out.webp"
    done = call("upscale", source, target, *FAST, *own)
    assert (done.returncode, done.stderr) == (0, "")
    assert Image.open(target).size == (56, 40)


def call(*args):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "eam_core", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_help_is_quick_and_names_every_choice():
    start = time.monotonic()
    done = call("upscale", "--help")
    assert time.monotonic() - start < 1.5
    assert done.returncode == 0
    assert all(name in done.stdout for name in COLOR_FIXES)
    check = "import sys, eam_core.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", check], timeout=60).returncode == 0


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_colour_mode_is_restored(run, tmp_path, mode):
    source = tmp_path / ("in.tif" if mode == "CMYK" else "in.png")
    if mode == "I;16":
        Image.fromarray(pixels(channels=1)[..., 0].astype(np.uint16) * 257).save(source)
    else:
        write(source, mode)
    status, _, err = run(source, tmp_path / "out.png")
    assert (status, err) == (0, "")
    with Image.open(tmp_path / "out.png") as result:
        assert result.size == (56, 40)
        assert result.mode == ("RGBA" if "A" in mode else "RGB")


def test_transparency_is_kept(run, tmp_path):
    image = Image.fromarray(pixels()).convert("RGBA")
    image.paste((10, 20, 30, 0), (0, 0, 14, 20))
    image.save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", tmp_path / "out.png")[0] == 0
    alpha = np.asarray(Image.open(tmp_path / "out.png"))[..., 3]
    assert alpha[:, :24].max() < 10 and alpha[:, 32:].min() > 245
    status, _, err = run(tmp_path / "in.png", tmp_path / "out.jpg")
    assert status == 0
    assert err.startswith("warning: ") and "transparency" in err and len(err.splitlines()) == 1


def test_exif_rotation_is_honoured(run, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    write(tmp_path / "in.jpg", exif=exif)
    assert run(tmp_path / "in.jpg", tmp_path / "out.png")[0] == 0
    assert Image.open(tmp_path / "out.png").size == (40, 56)


def make_bad_pictures(folder):
    """Return (file, words its message must have) for each kind of bad picture."""
    (folder / "text.png").write_text("not a picture")
    data = write(folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "short.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").touch()
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("1", (30_000, 20)).save(folder / "wide.png")
    (folder / "folder.png").mkdir()
    return {
        "text.png": ["PNG"],
        "short.png": ["truncated"],
        "empty.png": ["PNG"],
        "dot.png": ["1 x 1"],
        "wide.png": ["30000 x 20", "crop"],
        "missing.png": ["no such file"],
    }


def test_bad_pictures_are_refused_one_by_one(run, tmp_path):
    for name, words in make_bad_pictures(tmp_path).items():
        refused(run(tmp_path / name, tmp_path / "out.png"), name, *words)
    assert not (tmp_path / "out.png").exists()


def test_bad_picture_in_a_subprocess(own, tmp_path):
    make_bad_pictures(tmp_path)
    done = call("upscale", tmp_path / "short.png", tmp_path / "out.png", *FAST, *own)
    refused((done.returncode, done.stdout, done.stderr), "truncated")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--scale", "0"], ["scale", "got 0"]),
        (["--scale", "100"], ["scale", "got 100"]),
        (["--steps", "0"], ["steps", "got 0"]),
        (["--tile", "100"], ["tile", "got 100"]),
        (["--tile", "528"], ["512 pixels"]),
        (["--overlap", "120"], ["overlap", "got 120 pixels", "128"]),
        (["--tile-batch", "0"], ["tile batch"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--fidelity", "2"], ["fidelity"]),
        (["--color-fix", "sepia"], ["wavelet", "sepia"]),
        (["--device", "toaster"], ["toaster", "cpu"]),
    ],
)
def test_bad_settings_are_refused(run, own, tmp_path, options, words):
    write(tmp_path / "in.png")
    refused(run(tmp_path / "in.png", tmp_path / "out.png", options=[*own, *options]), *words)
    assert not (tmp_path / "out.png").exists()


def test_typing_errors_are_one_line_too(run, tmp_path):
    status, _, err = run(tmp_path / "in.png", tmp_path / "out.png", "--scale", "four")
    assert status == 2
    assert len(err.splitlines()) == 1 and "'four'" in err and "--help" in err


@pytest.fixture
def bad_weights(files, tiny, tmp_path):
    """Weight files of other kinds, as options for the command line with the words to expect."""

    def save(name, *keys):
        save_file({key: torch.zeros(2, 2) for key in keys}, tmp_path / name)

    save(
        "sdxl.safetensors",
        "conditioner.embedders.1.model.ln_final.weight",
        "model.diffusion_model.label_emb.0.0.weight",
    )
    save("flux.safetensors", "double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")
    save("lora.safetensors", "transformer.blocks.0.lora_A.weight", "transformer.blocks.0.lora_B.weight")
    whole = Path(files.base).read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pickled.ckpt")
    other = tiny.model(params=MMDiTParams(depth=3, hidden_size=128, context_size=32, pooled_size=24))
    save_weights(tmp_path / "other.safetensors", other.control.state_dict())
    return {
        ("--base", "sdxl.safetensors"): ["SD3", "an SDXL model"],
        ("--base", "flux.safetensors"): ["SD3", "a Flux model"],
        ("--base", "lora.safetensors"): ["SD3", "a LoRA"],
        ("--base", "short.safetensors"): ["truncated"],
        ("--base", "pickled.ckpt"): ["pickle", ".safetensors"],
        ("--base", "missing.safetensors"): ["found none"],
        ("--control", "lora.safetensors"): ["EAM control weights", "a LoRA"],
        ("--control", "other.safetensors"): ["trained for another", "depth 3 instead of 2"],
        ("--autoencoder", "sdxl.safetensors"): ["an EAM autoencoder", "an SDXL model"],
    }


def test_bad_weights_are_refused(run, own, bad_weights, tmp_path):
    write(tmp_path / "in.png")
    for (option, name), words in bad_weights.items():
        options = [*own, option, str(tmp_path / name)]
        refused(run(tmp_path / "in.png", tmp_path / "out.png", options=options), name, *words)
    assert not (tmp_path / "out.png").exists()


def test_base_alone_is_refused(run, own, tmp_path):
    write(tmp_path / "in.png")
    refused(run(tmp_path / "in.png", tmp_path / "out.png", options=own[:2]), "--control", "--autoencoder")


@pytest.fixture
def no_model(monkeypatch):
    """Fail as soon as weights are read: what is refused before costs the user no time."""

    def fail(**parts):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Restorer, "from_files", fail)


def test_bad_places_are_refused_before_any_work(run, no_model, tmp_path):
    source = write(tmp_path / "in.png")
    refused(run(source, tmp_path / "out.bmp"), ".png", "out.bmp")
    refused(run(source, tmp_path / "no" / "such" / "out.png"), "folder")
    refused(run(source, source), "other than the input")
    refused(run(tmp_path, tmp_path), "other than the input's")
    refused(run(tmp_path, source), "folder", "got a file")
    (tmp_path / "empty").mkdir()
    refused(run(tmp_path / "empty", tmp_path / "results"), "found none")
    assert not (tmp_path / "results").exists()


def test_full_disk_is_told_before_any_work(run, no_model, tmp_path, monkeypatch):
    source = write(tmp_path / "in.png")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 0))
    refused(run(source, tmp_path / "out.png"), "free disk")


def test_disk_that_fills_up_leaves_nothing_behind(run, tmp_path, monkeypatch):
    source = write(tmp_path / "in.png")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "fsync", full)
    refused(run(source, tmp_path / "out.png"), "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_folder_goes_on_past_bad_files(run, tmp_path):
    folder, results = tmp_path / "in", tmp_path / "results"
    folder.mkdir()
    make_bad_pictures(folder)
    for name in ("10.png", "2.png", "b.tif", "b.jpg"):
        write(folder / name)
    (folder / "notes.txt").write_text("not a picture, and not named as one")
    status, out, err = run(folder, results)
    assert status == 1
    assert [Path(line.split(":")[0]).name for line in out.splitlines()] == ["2.png", "10.png", "b.jpg", "b.png"]
    assert sorted(path.name for path in results.iterdir()) == ["10.png", "2.png", "b.jpg", "b.png"]
    for name in ("text.png", "short.png", "empty.png", "dot.png", "wide.png"):
        assert sum(name in line for line in err.splitlines()) == 1
    assert err.splitlines()[-1].startswith("error: 5 of 9 pictures")


def test_two_inputs_for_one_result_are_told(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.bmp")
    write(folder / "a.png")
    status, out, err = run(folder, tmp_path / "results")
    assert status == 1
    assert len(out.splitlines()) == 1
    assert "a.bmp" in err and "a.png" in err


def test_folder_of_good_files_exits_with_0_and_file_into_folder_keeps_its_name(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.png")
    assert run(folder, tmp_path / "results")[0] == 0
    assert run(folder / "a.png", tmp_path)[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "results" / "a.png").read_bytes()


def test_interrupt_leaves_nothing_behind(run, tmp_path, monkeypatch):
    source = write(tmp_path / "in.png")

    def interrupted(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Restorer, "restore_picture", interrupted)
    status, _, err = run(source, tmp_path / "out.png")
    assert (status, err) == (130, "stopped\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]
