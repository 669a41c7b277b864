"""Tune a CLIP vision tower so that it sees in a degraded picture what it saw in the clean one (ConsisSR, stage 1).

The tower as it is looks at the HR picture, a copy of it looks at the LR picture; the copy learns the other's tokens. It
is written to the folder `tower` of the run's folder, for --image-encoder and for models/clip_vision of ComfyUI.

python -m train.train_vision_tower consissr --tower FOLDER --data FOLDER_OR_TAR ... --run-dir DIR
"""

import copy
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eam_core.device import without_autocast
from eam_core.vision import CLIP_MEAN, CLIP_STD, load_tower, to_pixels, transformers_class
from train.config import LoopConfig
from train.data import Batch, DataConfig
from train.options import parse_config, run_script
from train.pairs import PairConfig, degrade_each
from train.task import Validation
from train.trainer import Trainer

FOLDER = "tower"
UNREAD = ("vision_model.post_layernorm.", "visual_projection.")  # make the pooled embedding, which is not trained on


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTowerConfig:
    """One run.

    Args:
        run_dir: folder of the run; the tower comes into its folder `tower`.
        tower: transformers folder of a CLIP vision tower with its projection, e.g. CLIP ViT-H/14; empty makes a tiny
            random one, which proves the path only.
        val_count: held-out pictures that are validated.
    """

    run_dir: str = "runs/vision_tower"
    tower: str = ""
    val_count: int = 32
    data: DataConfig
    pairs: PairConfig = PairConfig(presets=("stock",), preset_weights=(1.0,))  # noqa: RUF009 (frozen)
    loop: LoopConfig

    def __post_init__(self):
        if self.val_count < 1:
            raise ValueError(f"expected val_count of at least 1, got {self.val_count}")


def consissr() -> VisionTowerConfig:
    """ConsisSR's first stage: CLIP ViT-H/14, mean squared error, AdamW 1e-4, 100,000 steps; the batch is not stated."""
    data = DataConfig(data=("LSDIR=data/LSDIR", "DIV2K=data/DIV2K", "Flickr2K=data/Flickr2K"), num_workers=8)
    shared: dict[str, Any] = {"lr_schedule": "constant", "warmup": 500, "beta2": 0.999, "ema": 0.999}
    loop = LoopConfig(steps=100_000, batch_size=32, lr=1e-4, precision="bf16", save_every=2000, **shared)
    return VisionTowerConfig(tower="models/clip_vit_h14", data=data, loop=loop)


def debug() -> VisionTowerConfig:
    """Seconds on a CPU: proves the path, learns nothing."""
    data = DataConfig(data=("data/photos",), crop_sizes=(64,), held_out=3, num_workers=0)
    loop = LoopConfig(steps=4, batch_size=2, lr=1e-3, warmup=1, save_every=2, log_every=1, validate_every=2)
    return VisionTowerConfig(data=data, loop=loop, val_count=2)


class VisionTowerObjective(nn.Module):
    """From a batch of photos to the distance between what student and teacher see."""

    def __init__(self, tower: nn.Module, pairs: PairConfig):
        """Copy the tower: the original stays as it is, the copy's part before the tokens is trained."""
        super().__init__()
        self.pairs, self.image_size = pairs, int(tower.config.image_size)  # type: ignore[arg-type,union-attr]
        self.teacher = tower.eval().requires_grad_(False)
        self.student = copy.deepcopy(tower).requires_grad_(True)
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(not name.startswith(UNREAD))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return "loss" [B]: mean squared difference of the tokens (the last hidden state)."""
        hr, lr = self.pixels(batch.hr, batch.seeds)
        return {"loss": self.distance(self.student, lr, hr)}

    def distance(self, tower: nn.Module, lr: Tensor, hr: Tensor) -> Tensor:
        """Return the mean squared difference [B] of a tower's tokens of LR and the teacher's of HR pixels."""
        with torch.no_grad():
            target = self.teacher(hr).last_hidden_state.float()
        return (tower(lr).last_hidden_state.float() - target).square().mean((1, 2))

    @torch.no_grad()
    def pixels(self, hr: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Degrade photos, uint8 [B, 3, S, S], each by its own seed; return HR and LR as the towers take them."""
        with without_autocast(hr.device):
            images = hr.float() / 255
            lr = degrade_each(images, seeds, self.pairs)
            return to_pixels(images, self.image_size), to_pixels(lr, self.image_size)


class VisionTowerTask:
    """The run as the trainer sees it."""

    name = "vision tower"
    batches_may_leave_parts_unused = False
    unsharded = ("teacher",)

    def __init__(self, config: VisionTowerConfig):
        """Load the tower."""
        self.val_count, self.val_size = config.val_count, config.data.crop_sizes[0]
        tower = load_tower(config.tower, projected=True) if config.tower else _random_tower(config.loop.seed)
        self.module = VisionTowerObjective(tower, config.pairs)
        self.unread = {k: v.clone() for k, v in tower.state_dict().items() if k.startswith(UNREAD)}

    @torch.no_grad()
    def validate(self, batch: Batch) -> Validation:
        """Return the distance on held-out pictures, and that of the tower as it was before."""
        hr, lr = self.module.pixels(batch.hr, batch.seeds)
        towers = {"mse": self.module.student, "mse_untuned": self.module.teacher}
        return Validation({name: self.module.distance(t, lr, hr).mean().item() for name, t in towers.items()}, {})

    def export(self, averaged: Mapping[str, Tensor], folder: Path, training: Mapping[str, Any]) -> list[Path]:
        """Write the student as a folder of transformers; ComfyUI loads its model.safetensors."""
        state = {name.removeprefix("student."): value for name, value in averaged.items()} | self.unread
        return save_tower(self.module.teacher, state, folder / FOLDER, training)


def save_tower(
    tower: nn.Module, state: Mapping[str, Tensor], folder: Path, training: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write a tower in half precision, with its preprocessing; each file appears only when it is whole.

    Args:
        tower: transformers' CLIPVisionModelWithProjection, for its config.
        state: its weights; ComfyUI wants their names and those of the projection.
        folder: target.
        training: how it was made, written beside it.

    Returns:
        The files.
    """
    part = folder.with_name(f".{folder.name}.part")
    half = {name: value.detach().cpu().half() for name, value in state.items()}
    tower.save_pretrained(part, state_dict=half)  # type: ignore[operator]
    size = tower.config.image_size  # type: ignore[union-attr]
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,  # bicubic
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_convert_rgb": True,
    }
    (part / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    (part / "training.json").write_text(json.dumps(dict(training or {}), indent=2) + "\n", encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(part.iterdir())
    for file in files:
        os.replace(file, folder / file.name)
    shutil.rmtree(part)
    return [folder / file.name for file in files]


def _random_tower(seed: int) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = transformers_class("CLIPVisionConfig")(**sizes, hidden_act="gelu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers_class("CLIPVisionModelWithProjection")(config)


def train_vision_tower(config: VisionTowerConfig) -> None:
    """Run one training to its end."""
    Trainer(VisionTowerTask(config), config.loop, config.data, config.run_dir, dataclasses.asdict(config)).run()


def main() -> None:
    """Run from the command line."""
    train_vision_tower(parse_config({"consissr": consissr, "debug": debug}, description=__doc__))


if __name__ == "__main__":
    run_script(main)
