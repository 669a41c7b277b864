"""The trainer on the debug recipe: what it writes, what it optimises, what stops it, and what must change nothing."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.append(str(Path(__file__).parent))

from trainer_runs import assert_close, assert_same, configured, last_checkpoint, log_of, trained

from eam_core.checkpoint import build_control, build_image_prompt, check_pair, mmdit_params
from eam_core.errors import EAMError
from eam_core.weight_files import read_metadata, read_weights
from train.control_task import ControlConfig, ControlObjective, ControlTask
from train.data import TrainingData
from train.train_psi_dit import train_control


@pytest.fixture(scope="module")
def run_dir(parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "debug"
    train_control(configured(parts, folder))
    return folder


def test_run_folder_holds_what_the_docs_name(run_dir):
    assert {path.name for path in run_dir.iterdir()} == {
        "config.json",
        "log.jsonl",
        "tensorboard",
        "checkpoints",
        "control.safetensors",
        "summary.json",
    }


def test_config_is_complete_and_written_before_the_first_step(parts, tmp_path):
    options = ["--lr", "1e30", "--warmup", "0"]
    with pytest.raises(EAMError):
        trained(parts, tmp_path, *options)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["recipe"], config["loop"]["lr"], config["parts"]["base"]) == ("debug", 1e30, str(parts.base))


def test_exported_weights_load_and_fit_the_base(parts, run_dir):
    control = build_control(read_weights(run_dir / "control.safetensors"), "control")
    check_pair(mmdit_params(read_weights(parts.base)), control.params, "control")
    notes = json.loads(read_metadata(run_dir / "control.safetensors")["training"])
    assert (notes["kind"], notes["recipe"], notes["step"]) == ("control", "debug", 4)


def test_exported_weights_are_the_average_of_those_trained(parts, tmp_path):
    tensors = trained(parts, tmp_path, "--steps", "2", "--ema", "0")
    names = [name.removeprefix("model.") for name in tensors if name.startswith("model.")]
    assert all(torch.equal(tensors[f"model.{name}"], tensors[f"ema.{name}"]) for name in names)
    averaged = trained(parts, tmp_path / "averaged", "--steps", "2", "--ema", "0.9")
    assert not torch.equal(averaged[f"model.{names[0]}"], averaged[f"ema.{names[0]}"])
    exported = read_weights(tmp_path / "averaged" / "control.safetensors")
    assert torch.equal(exported["lr_embedder.proj.weight"], averaged["ema.model.control.lr_embedder.proj.weight"])


def test_only_the_control_is_optimised(parts, run_dir):
    tensors = last_checkpoint(run_dir)
    control = build_control(read_weights(run_dir / "control.safetensors"), "control")
    own = {f"model.control.{name}" for name, _ in control.named_parameters()}
    kinds = ("model", "ema", "exp_avg", "exp_avg_sq")
    assert tensors.keys() == {f"{kind}.{name}" for kind in kinds for name in own}
    task = ControlTask(configured(parts, "unused"))
    assert not any(p.requires_grad for p in task.module.model.base.parameters())


def test_log_and_tensorboard_hold_losses_per_band_mask_ratio_norm_and_speed(run_dir):
    entries = [entry for entry in log_of(run_dir) if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    for entry in entries:
        assert {"loss", "grad_norm", "mask_ratio", "images_per_second", "lr"} <= entry.keys()
        assert all(math.isfinite(value) for value in entry.values())
        assert any(name.startswith("loss_sigma_") for name in entry)
    assert [entry["mask_ratio"] >= 0.75 for entry in entries] == [True, True, False, False]
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert {"loss", "mask_ratio", "grad_norm", "validation/psnr_plain"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("validation/plain")] == [2, 4]


def test_summary_says_how_it_went(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["exported"], summary["processes"]) == (4, ["control.safetensors"], 1)
    assert summary["images_per_second"] > 0
    assert set(summary["validation"]) == {"psnr_plain", "psnr_light", "psnr_stock"}


def test_older_checkpoints_are_dropped(parts, tmp_path):
    trained(parts, tmp_path, "--save-every", "1", "--keep-last", "2")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"step-0000000{step}.{suffix}" for step in (3, 4) for suffix in ("json", "safetensors")
    ]


def test_accumulated_micro_batches_train_as_one_batch(parts, tmp_path):
    options = ("--batch-size", "4", "--steps", "2")
    whole = trained(parts, tmp_path / "whole", *options)
    split = trained(parts, tmp_path / "split", *options, "--accumulation", "2")
    for kind in ("model", "exp_avg"):
        part = {name: value for name, value in whole.items() if name.startswith(f"{kind}.")}
        assert_close(part, {name: split[name] for name in part}, 1e-4 if kind == "model" else 1e-5)


def test_without_a_vision_tower_there_is_no_image_prompt(run_dir):
    assert build_image_prompt(read_weights(run_dir / "control.safetensors"), "control") is None


def test_given_weights_are_continued(parts, run_dir, tmp_path):
    start = run_dir / "control.safetensors"
    trained(parts, tmp_path, "--start", str(start), "--lr", "0")
    assert_same(read_weights(start), read_weights(tmp_path / "control.safetensors"))


def test_without_held_out_pictures_it_trains_and_says_so(parts, tmp_path, capsys):
    trained(parts, tmp_path, "--held-out", "0")
    assert "no picture is held out for validation; see --held-out" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["validation"] == {}


def test_bfloat16_trains_to_about_the_same_losses(parts, script, tmp_path):
    for precision in ("no", "bf16"):
        status, text = script.run("train_psi_dit", parts.options(tmp_path / precision, "--precision", precision))
        assert status == 0, text
    plain, half = ([e["loss"] for e in log_of(tmp_path / p) if "loss" in e] for p in ("no", "bf16"))
    assert half == pytest.approx(plain, rel=0.03) and half != plain
    control = build_control(read_weights(tmp_path / "bf16" / "control.safetensors"), "control")
    assert next(control.parameters()).dtype == torch.float32


def test_other_seeds_give_other_weights(parts, run_dir, tmp_path):
    other = trained(parts, tmp_path, "--seed", "1")
    name = "model.model.control.lr_embedder.proj.weight"
    assert not torch.equal(other[name], last_checkpoint(run_dir)[name])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(parts, tmp_path):
    with pytest.raises(EAMError, match="expected a finite loss and gradient, got another at step"):
        trained(parts, tmp_path, "--lr", "1e30", "--warmup", "0")
    (file,) = tmp_path.glob("nonfinite-step-*.json")
    report = json.loads(file.read_text())
    (batch,) = report["batches"]
    assert len(batch["keys"]) == len(batch["loss"]) == 2
    assert report["config"]["loop"]["lr"] == 1e30


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(parts, tmp_path, monkeypatch):
    class Broken(torch.autograd.Function):
        """A loss that is fine and a gradient that is not, as an overflow in half precision makes it."""

        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    right = ControlObjective.forward

    def broken(self, batch, step):
        out = right(self, batch, step)
        return {**out, "loss": Broken.apply(out["loss"])} if step == 2 else out

    monkeypatch.setattr(ControlObjective, "forward", broken)
    with pytest.raises(EAMError, match="got another at step 2"):
        trained(parts, tmp_path, "--save-every", "2")
    assert all(value.isfinite().all() for value in last_checkpoint(tmp_path).values())
    assert json.loads(next(tmp_path.glob("nonfinite-*.json")).read_text())["batches"]


def test_images_per_second_counts_what_was_trained(parts, tmp_path):
    """A larger crop makes a smaller batch: of four images at 64 px, one at 128 px."""
    trained(parts, tmp_path, "--crop-sizes", "64", "128", "--batch-size", "4", "--steps", "6", "--log-every", "6")
    summary = json.loads((tmp_path / "summary.json").read_text())
    images = summary["images_per_second"] * summary["seconds_since_last_start"]
    sizes = [
        len(b.hr) for b in batches_of(configured(parts, tmp_path, "--crop-sizes", "64", "128", "--batch-size", "4"), 6)
    ]
    assert set(sizes) == {1, 4}
    assert images == pytest.approx(sum(sizes), rel=0.1)


def batches_of(config: ControlConfig, count: int) -> list:
    batches = TrainingData(config.data, seed=config.loop.seed, batch_size=config.loop.batch_size).batches()
    return [next(batches) for _ in range(count)]
