"""Several processes train as one does: DDP over gloo, and FSDP2 where this machine's torch runs it on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eam_core.checkpoint import read_weights

OPTIONS = ("--batch-size", "4", "--steps", "5", "--masked-steps", "2", "--save-every", "5")


def launch(script, parts, run_dir: Path, *options: str, num_processes: int, module: str = "torch.distributed.run") -> str:
    """Train in several processes, as torchrun (or accelerate launch) starts them."""
    command = [sys.executable, "-P", "-m", module]
    if module == "torch.distributed.run":
        command += ["--standalone", f"--nproc-per-node={num_processes}", "-m"]
    else:
        command += ["launch", "--cpu", f"--num_processes={num_processes}", "--num_machines=1", "--mixed_precision=no"]
        command += ["--dynamo_backend=no", "-m"]
    command += ["train.train_psi_dit", *parts.options(run_dir, *OPTIONS, *options)]
    environment = {**script.environment, "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stderr


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
    launch(script, parts, tmp_path, num_processes=2)
    assert losses_of(tmp_path) == pytest.approx(losses_of(alone), rel=1e-4)
    one, two = (read_weights(folder / "control.safetensors") for folder in (alone, tmp_path))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-3, rtol=0)
    assert json.loads((tmp_path / "summary.json").read_text())["processes"] == 2


def test_what_two_processes_began_one_ends(script, parts, alone, tmp_path):
    whole = launch(script, parts, tmp_path, num_processes=2, module="accelerate.commands.accelerate_cli")
    assert "Traceback" not in whole
    for file in (tmp_path / "checkpoints").glob("step-00000005.*"):
        os.remove(file)
    assert losses_of(tmp_path) == pytest.approx(losses_of(alone), rel=1e-4)
