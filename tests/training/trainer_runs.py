"""What the tests of the trainer share: short runs of the debug recipe in this process, and what they left."""

import json
from pathlib import Path

import torch
from torch import Tensor

from eam_core.weight_files import read_weights
from train.control_task import ControlConfig
from train.options import parse_config
from train.recipes import RECIPES
from train.train_psi_dit import train_control


def configured(parts, run_dir, *options: str) -> ControlConfig:
    return parse_config(RECIPES, description="", argv=parts.options(run_dir, *options))


def trained(parts, run_dir: Path, *options: str) -> dict[str, Tensor]:
    """Train in this process and return every tensor of the last checkpoint."""
    train_control(configured(parts, run_dir, *options))
    return last_checkpoint(run_dir)


def last_checkpoint(run_dir: Path) -> dict[str, Tensor]:
    return read_weights(max((run_dir / "checkpoints").glob("*.safetensors")))


def log_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differ, f"{len(differ)} of {len(one)} tensors differ, e.g. {differ[0]}"


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=tolerance, msg=name)
