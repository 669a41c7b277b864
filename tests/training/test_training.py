"""The three scripts' debug recipes from photos to weights, and their command lines."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from eam_core.checkpoint import (
    build_autoencoder,
    build_control,
    build_mmdit,
    check_pair,
    read_metadata,
    read_weights,
)
from train import train_autoencoder, train_base, train_control, train_few_step


class Runs(NamedTuple):
    """What the three scripts made."""

    photos: Path
    autoencoder: Path
    base: Path
    control: Path

    def options(self, script: str) -> list[str]:
        given = {
            "train_autoencoder": [],
            "train_base": ["--autoencoder", str(self.autoencoder)],
            "train_control": ["--autoencoder", str(self.autoencoder), "--base", str(self.base)],
        }
        return ["debug", "--photos", str(self.photos), *given[script]]

    def start(self, script: str, run_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a script's debug recipe in a process of its own."""
        command = [sys.executable, "-P", "-m", f"train.{script}", *self.options(script)]
        return subprocess.run(
            [*command, "--run-dir", str(run_dir), *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("training")
    made = Runs(
        root / "photos",
        root / "ae" / "autoencoder.safetensors",
        root / "base" / "base.safetensors",
        root / "control" / "control.safetensors",
    )
    made.photos.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        coarse = torch.randint(0, 256, (12, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((224, 160), Image.Resampling.BICUBIC).save(made.photos / f"{i}.jpg")
    for script, file in zip(("train_autoencoder", "train_base", "train_control"), made[1:]):
        run = made.start(script, file.parent)
        assert run.returncode == 0, f"{script}:\n{run.stderr}"
    return made


def log_of(weights: Path) -> list[dict]:
    return [json.loads(line) for line in weights.with_suffix(".jsonl").read_text().splitlines()]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_debug_recipes_make_files_that_load_and_fit_together(runs):
    autoencoder = build_autoencoder(read_weights(runs.autoencoder), "autoencoder")
    base = build_mmdit(read_weights(runs.base), "base")
    control = build_control(read_weights(runs.control), "control")
    assert autoencoder.params == train_autoencoder.debug().params
    assert base.params == train_base.debug().params
    assert control.params.lr_attention == train_control.debug().lr_attention
    check_pair(base.params, control.params, "control")


def test_nothing_but_weights_and_their_logs_is_written(runs):
    written = {path.name for file in runs[1:] for path in file.parent.iterdir()}
    names = ("autoencoder", "linear", "base", "control")
    assert written == {f"{name}.{suffix}" for name in names for suffix in ("safetensors", "jsonl")}


@pytest.mark.parametrize("kind", ["autoencoder", "base", "control"])
def test_log_has_a_finite_loss_at_each_save(runs, kind):
    entries = log_of(getattr(runs, kind))
    assert [entry["step"] for entry in entries] == [2, 4]
    assert all(math.isfinite(value) for entry in entries for value in entry.values())
    assert all(entry["loss"] > 0 and entry["grad_norm"] > 0 for entry in entries)


def test_logs_hold_the_validation_scores(runs):
    assert {"psnr", "psnr_linear"} <= log_of(runs.autoencoder)[-1].keys()
    assert {f"psnr_{preset}" for preset in train_control.debug().pairs.presets} <= log_of(runs.control)[-1].keys()


def test_files_say_how_they_were_made(runs):
    training = json.loads(read_metadata(runs.control)["training"])
    assert training["kind"] == "control"
    assert training["base"] == str(runs.base)
    assert (training["steps"], training["step"], training["seed"]) == (4, 4, 0)
    assert json.loads(read_metadata(runs.base)["training"])["kind"] == "mmdit"


def test_second_phase_of_the_autoencoder_leaves_its_latents(runs):
    linear = read_weights(runs.autoencoder.with_name("linear.safetensors"))
    final = read_weights(runs.autoencoder)
    assert torch.equal(linear["encoder.weight"], final["encoder.weight"])
    assert torch.equal(linear["encoder.bias"], final["encoder.bias"])
    assert not torch.equal(linear["decoder.leave.weight"], final["decoder.leave.weight"])


def test_same_seed_same_weights(runs, tmp_path, monkeypatch):
    run = runs.start("train_control", tmp_path / "again")
    assert run.returncode == 0, run.stderr
    argv = ["train_control", *runs.options("train_control"), "--run-dir", str(tmp_path / "other"), "--seed", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    train_control.main()
    first, again, other = (
        read_weights(folder / "control.safetensors")
        for folder in (runs.control.parent, tmp_path / "again", tmp_path / "other")
    )
    assert same(first, again)
    assert not same(first, other)


@torch.no_grad()
@pytest.mark.parametrize("local_heads", [0, 1])
def test_training_starts_as_the_base_itself(runs, local_heads):
    files = {"autoencoder": str(runs.autoencoder), "base": str(runs.base)}
    _, model = train_control.load_models(train_control.ControlConfig(**files, local_heads=local_heads))
    latents, lr = torch.randn(2, 2, 16, 7, 10)
    given = latents, torch.tensor([900.0, 100.0]), *train_base.null_text(model.base.params, 2)
    assert torch.equal(model(*given, lr), model.base(*given))


def test_control_training_leaves_base_and_autoencoder_as_they_were(runs, tmp_path, monkeypatch):
    made = []

    def noting(config):
        made.extend(load_models(config))
        return made

    load_models = train_control.load_models
    monkeypatch.setattr(train_control, "load_models", noting)
    options = ["--run-dir", str(tmp_path), "--lr", "0.1", "--lr-attention", "self", "--local-heads", "0"]
    monkeypatch.setattr(sys, "argv", ["train_control", *runs.options("train_control"), *options])
    train_control.main()
    autoencoder, model = made
    assert same(autoencoder.state_dict(), read_weights(runs.autoencoder))
    assert same(model.base.state_dict(), read_weights(runs.base))
    trained = build_control(read_weights(tmp_path / "control.safetensors"), "x")
    assert trained.params.lr_attention == "self"
    assert trained.blocks[0].img_out.weight.any(), "the control never moved from its zero start"


def test_control_training_goes_on_from_given_weights(runs, tmp_path, monkeypatch):
    options = ["--run-dir", str(tmp_path), "--start", str(runs.control), "--steps", "1", "--lr", "0"]
    monkeypatch.setattr(sys, "argv", ["train_control", *runs.options("train_control"), *options])
    train_control.main()
    assert same(read_weights(tmp_path / "control.safetensors"), read_weights(runs.control))


def test_few_step_tuning_goes_on_from_a_control(runs, tmp_path, monkeypatch):
    options = ["--run-dir", str(tmp_path), "--start", str(runs.control), "--lr", "0.01"]
    monkeypatch.setattr(sys, "argv", ["train_few_step", *runs.options("train_control"), *options])
    train_few_step.main()
    state = read_weights(tmp_path / "control.safetensors")
    assert build_control(state, "x").params == build_control(read_weights(runs.control), "x").params
    assert not same(state, read_weights(runs.control))
    assert all(value.isfinite().all() for value in state.values())
    assert all(math.isfinite(value) for value in log_of(tmp_path / "few_step.safetensors")[-1].values())


def test_options_override_the_recipe_at_any_depth(runs, tmp_path, monkeypatch):
    options = ["--hidden-size", "64", "--depth", "1", "--steps", "3", "--save-every", "1", "--batch-size", "1"]
    argv = ["train_base", *runs.options("train_base"), "--run-dir", str(tmp_path), *options]
    monkeypatch.setattr(sys, "argv", argv)
    train_base.main()
    params = build_mmdit(read_weights(tmp_path / "base.safetensors"), "base").params
    assert (params.hidden_size, params.depth, params.context_size) == (64, 1, 64)
    assert [entry["step"] for entry in log_of(tmp_path / "base.safetensors")] == [1, 2, 3]
    assert json.loads(read_metadata(tmp_path / "base.safetensors")["training"])["batch_size"] == 1


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (train_base, ["debug", "--steps", "0"], "expected steps of at least 1, got 0"),
        (train_base, ["debug", "--ema", "1.5"], "expected ema in [0, 1), got 1.5"),
        (train_base, ["debug", "--hidden-size", "100"], "expected hidden_size to be a multiple of 64, got 100"),
        (train_base, ["debug", "--depth", "many"], "argument --depth: invalid int value: 'many'"),
        (train_base, ["huge"], "invalid choice: 'huge'"),
        (train_base, [], "the following arguments are required: recipe"),
        (train_autoencoder, ["debug", "--nonsense", "1"], "unrecognized arguments: --nonsense 1"),
        (train_control, ["debug", "--lr-attention", "both"], "invalid choice: 'both'"),
        (train_control, ["debug", "--presets", "plain"], "expected one weight per preset ('plain',), got"),
        (train_control, ["debug", "--presets", "a", "b", "c"], "expected presets among ['light', 'plain', 'stock']"),
    ],
)
def test_bad_options_end_with_status_2_and_one_sentence(script, options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *options])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line


def test_bad_option_ends_the_process_with_status_2(runs, tmp_path):
    run = runs.start("train_base", tmp_path / "bad", "--save-every", "0")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith("error: expected save_every of at least 1, got 0")
    assert not (tmp_path / "bad").exists()
