"""Several processes train as one does: DDP over gloo, and FSDP2 where this machine's torch runs it on the CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eam_core.weight_files import read_weights

OPTIONS = ("--batch-size", "4", "--steps", "5", "--masked-steps", "2", "--save-every", "5", "--keep-last", "5")
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
MODULE = ["-m", "train.train_psi_dit"]
ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes=2", "--num_machines=1"]
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def launch(script, parts, run_dir: Path, *options: str, launcher: list[str], extra: dict | None = None) -> None:
    """Train in several processes, as torchrun (or accelerate launch) starts them."""
    command = [sys.executable, "-P", "-m", *launcher, *parts.options(run_dir, *OPTIONS, *options)]
    environment = {**script.environment, "ACCELERATE_USE_CPU": "true", **(extra or {})}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]


def losses_of(run_dir: Path) -> list[float]:
    entries = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.fixture(scope="module")
def alone(script, parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    status, text = script.run("train_psi_dit", parts.options(folder, *OPTIONS))
    assert status == 0, text
    return folder


def test_two_gloo_processes_have_the_losses_and_weights_of_one(script, parts, alone, tmp_path):
    launch(script, parts, tmp_path, launcher=[*TORCHRUN, *MODULE])
    assert losses_of(tmp_path) == pytest.approx(losses_of(alone), rel=1e-4)
    one, two = (read_weights(folder / "control.safetensors") for folder in (alone, tmp_path))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-3, rtol=0)
    assert json.loads((tmp_path / "summary.json").read_text())["processes"] == 2


def test_what_two_processes_began_one_ends(script, parts, alone, tmp_path):
    launcher = [*ACCELERATE, "--mixed_precision=no", "--dynamo_backend=no", *MODULE]
    launch(script, parts, tmp_path, "--save-every", "2", launcher=launcher)
    for step in (4, 5):
        for file in (tmp_path / "checkpoints").glob(f"step-0000000{step}.*"):
            file.unlink()
    (tmp_path / "control.safetensors").unlink()
    assert (tmp_path / "checkpoints" / "step-00000002.json").exists()
    status, text = script.run("train_psi_dit", parts.options(tmp_path, *OPTIONS, "--save-every", "2"))
    assert status == 0 and "going on from step 2 of 5" in text
    assert losses_of(tmp_path) == pytest.approx(losses_of(alone), rel=1e-4)


def test_asked_to_stop_all_processes_end_at_one_step_and_save(script, parts, tmp_path):
    many = [*OPTIONS, "--steps", "500", "--save-every", "1000", "--validate-every", "0", "--num-workers", "1"]
    command = [sys.executable, "-P", "-m", *TORCHRUN, *MODULE, *parts.options(tmp_path, *many)]
    environment = {**script.environment, "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log, deadline = tmp_path / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    text = process.communicate(timeout=120)[0]
    assert "is saved, the same command goes on from there" in text
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.json")
    assert 3 < json.loads(checkpoint.read_text())["step"] < 500


@pytest.mark.parametrize(("family", "precision"), [("psi_dit", "bf16"), ("controlnet", "no")])
def test_sharded_with_fsdp2_losses_and_weights_are_those_of_one_process(script, parts, tmp_path, family, precision):
    choice = ("--family", family, "--precision", precision)
    status, text = script.run("train_psi_dit", parts.options(tmp_path / "alone", *OPTIONS, *choice))
    assert status == 0, text
    launcher = [*TORCHRUN, str(Path(__file__).with_name("fsdp2_on_cpu.py"))]
    sharded = tmp_path / "sharded"
    launch(script, parts, sharded, "--save-every", "2", *choice, launcher=launcher, extra=FSDP2)
    assert losses_of(sharded) == pytest.approx(losses_of(tmp_path / "alone"), rel=1e-3)
    for step in (4, 5):
        for file in (sharded / "checkpoints").glob(f"step-0000000{step}.*"):
            file.unlink()
    (sharded / "control.safetensors").unlink()
    launch(script, parts, sharded, "--save-every", "2", *choice, launcher=launcher, extra=FSDP2)
    one, two = (read_weights(folder / "control.safetensors") for folder in (tmp_path / "alone", sharded))
    assert one.keys() == two.keys()
    for name in one:
        # AdamW moves a weight by 1e-3 a step whatever its gradient; where that is all rounding, bf16 may turn a step.
        assert (two[name] - one[name]).abs().max() < (4e-3 if precision == "bf16" else 2e-3)
        assert (two[name] - one[name]).abs().mean() < 1e-4
