"""Mistakes on the command line: one sentence each, exit status 2, and before any work where that can be."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from command_line import FAST, call, make_bad_pictures, refused, write
from safetensors.torch import save_file

from eam_core.model.mmdit import MMDiTParams
from eam_core.pipeline import Restorer
from eam_core.weight_files import save_weights


def test_bad_pictures_are_refused_one_by_one(upscale, tmp_path):
    for name, words in make_bad_pictures(tmp_path).items():
        refused(upscale(tmp_path / name, tmp_path / "out.png"), name, *words)
    assert not (tmp_path / "out.png").exists()


def test_bad_picture_in_a_subprocess(tiny_options, tmp_path):
    make_bad_pictures(tmp_path)
    done = call("upscale", tmp_path / "short.png", tmp_path / "out.png", *FAST, *tiny_options)
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
        (["--tile-batch", "-1"], ["tile_batch", "got -1"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--fidelity", "2"], ["fidelity"]),
        (["--color-fix", "sepia"], ["wavelet", "sepia"]),
        (["--device", "toaster"], ["toaster", "cpu"]),
    ],
)
def test_bad_settings_are_refused(upscale, tiny_options, tmp_path, options, words):
    write(tmp_path / "in.png")
    refused(upscale(tmp_path / "in.png", tmp_path / "out.png", options=[*tiny_options, *options]), *words)
    assert not (tmp_path / "out.png").exists()


def test_typing_errors_are_one_line_too(upscale, tmp_path):
    status, _, err = upscale(tmp_path / "in.png", tmp_path / "out.png", "--scale", "four")
    assert status == 2
    assert len(err.splitlines()) == 1 and "'four'" in err and "--help" in err


@pytest.fixture
def bad_weights(tiny_files, tiny, tmp_path):
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
    whole = Path(tiny_files.base).read_bytes()
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


def test_bad_weights_are_refused(upscale, tiny_options, bad_weights, tmp_path):
    write(tmp_path / "in.png")
    for (option, name), words in bad_weights.items():
        options = [*tiny_options, option, str(tmp_path / name)]
        refused(upscale(tmp_path / "in.png", tmp_path / "out.png", options=options), name, *words)
    assert not (tmp_path / "out.png").exists()


def test_base_alone_is_refused(upscale, tiny_options, tmp_path):
    write(tmp_path / "in.png")
    refused(upscale(tmp_path / "in.png", tmp_path / "out.png", options=tiny_options[:2]), "--control", "--autoencoder")


@pytest.fixture
def no_model(monkeypatch):
    """Fail as soon as weights are read: what is refused before costs the user no time."""

    def fail(**parts):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Restorer, "from_files", fail)


def test_bad_places_are_refused_before_any_work(upscale, no_model, tmp_path):
    source = write(tmp_path / "in.png")
    refused(upscale(source, tmp_path / "out.bmp"), ".png", "out.bmp")
    refused(upscale(source, tmp_path / "no" / "such" / "out.png"), "folder")
    refused(upscale(source, source), "other than the input")
    refused(upscale(tmp_path, tmp_path), "other than the input's")
    refused(upscale(tmp_path, source), "folder", "got a file")
    (tmp_path / "empty").mkdir()
    refused(upscale(tmp_path / "empty", tmp_path / "results"), "found none")
    assert not (tmp_path / "results").exists()


def test_full_disk_is_told_before_any_work(upscale, no_model, tmp_path, monkeypatch):
    source = write(tmp_path / "in.png")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 0))
    refused(upscale(source, tmp_path / "out.png"), "free disk")
