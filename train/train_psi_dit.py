"""Train a control for an SD3-family base: Psi-DiT (EAM), with TALA and image prompt (ConsisSR), or DiT-ControlNet.

python -m train.train_psi_dit RECIPE [--field value ...] --run-dir DIR
accelerate launch -m train.train_psi_dit RECIPE ...        # several GPUs or machines, DDP or FSDP2

The same command goes on where a stopped or killed run was. docs/TRAINING.md leads from SD3-medium to a trained control.
"""

import dataclasses

from train.control_task import ControlConfig, ControlTask
from train.options import parse_config, run_script
from train.recipes import RECIPES
from train.trainer import Trainer


def train_control(config: ControlConfig) -> None:
    """Run one training to its end."""
    task = ControlTask(config)
    Trainer(task, config.loop, config.data, config.run_dir, dataclasses.asdict(config)).run()


def main() -> None:
    """Run from the command line."""
    train_control(parse_config(RECIPES, description=__doc__))


if __name__ == "__main__":
    run_script(main)
