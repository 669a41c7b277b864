"""Train the embedded autoencoder's cleaner: latents of degraded pictures towards those of their originals.

Everything else of the autoencoder stays as it is. What is left to the transformer is detail, not noise. Loss: L1 on
pixels and on their gradients of what the linear part of the decoder makes of the cleaned latents.
Writes autoencoder.safetensors into the run folder.

python -m train.train_cleaner tiny --data FOLDER_OR_TAR ... --autoencoder FILE --run-dir DIR
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eam_core.checkpoint import build_autoencoder
from eam_core.images import resize
from eam_core.model.autoencoder import PatchAutoencoder
from eam_core.weight_files import read_weights, save_weights
from train.config import LoopConfig
from train.data import Batch, DataConfig
from train.options import parse_config, run_script
from train.pairs import TINY_PAIRS, PairConfig, degrade_each, gradient_l1, pixel_l1, psnr
from train.task import Validation, averaged_state
from train.trainer import Trainer

VAL_COUNT = 48
FILE = "autoencoder.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanerConfig:
    """One run.

    Args:
        run_dir: folder of the run.
        autoencoder: weight file whose cleaner is trained.
    """

    run_dir: str = "runs/cleaner"
    autoencoder: str = "runs/autoencoder/autoencoder.safetensors"
    data: DataConfig = DataConfig(data=("data/photos",), crop_sizes=(128,))  # noqa: RUF009 (frozen)
    pairs: PairConfig = TINY_PAIRS
    loop: LoopConfig = LoopConfig(steps=1100, batch_size=24, lr=1e-3, ema=0.99, save_every=100, validate_every=100)  # noqa: RUF009


def tiny() -> CleanerConfig:
    """The embedded default's cleaner."""
    return CleanerConfig()


def debug() -> CleanerConfig:
    """Seconds on a CPU: proves the path, learns nothing."""
    data = DataConfig(data=("data/photos",), crop_sizes=(64,), held_out=3, num_workers=0)
    loop = LoopConfig(steps=4, batch_size=2, lr=1e-3, warmup=1, save_every=2, log_every=1, validate_every=2)
    return CleanerConfig(data=data, loop=loop)


class CleanerObjective(nn.Module):
    """From a batch of photos to the distance of what their degraded copies are cleaned to."""

    def __init__(self, autoencoder: PatchAutoencoder, pairs: PairConfig):
        """Freeze all but the cleaner."""
        super().__init__()
        self.autoencoder, self.pairs = autoencoder.requires_grad_(False), pairs
        autoencoder.cleaner.requires_grad_(True)

    def clean(self, lr: Tensor, size: tuple[int, int]) -> Tensor:
        """Enlarge pictures [B, 3, h, w] in [0, 1], clean them and decode them linearly: [B, 3, H, W] in [-1, 1]."""
        with torch.no_grad():
            raw = self.autoencoder.encode(resize(lr, size) * 2 - 1)
        return self.autoencoder.decoder.synthesize(self.autoencoder.cleaner(raw))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return "loss" [B] and its parts."""
        hr = batch.hr.float() / 255
        output = self.clean(degrade_each(hr, batch.seeds, self.pairs), (hr.shape[-2], hr.shape[-1]))
        pixel, gradient = pixel_l1(output, hr * 2 - 1), gradient_l1(output, hr * 2 - 1)
        return {"loss": pixel + gradient, "l1": pixel, "gradient_l1": gradient}


class CleanerTask:
    """A cleaner's run as the trainer sees it."""

    name = "cleaner"
    batches_may_leave_parts_unused = False
    unsharded = ()

    def __init__(self, config: CleanerConfig):
        """Load the autoencoder."""
        self.val_count, self.val_size = VAL_COUNT, config.data.crop_sizes[0]
        autoencoder = build_autoencoder(read_weights(config.autoencoder), config.autoencoder).float()
        self.module = CleanerObjective(autoencoder.to(memory_format=torch.channels_last), config.pairs)

    @torch.no_grad()
    def validate(self, batch: Batch) -> Validation:
        """Return PSNR per degradation on held-out pictures, with the cleaner and without."""
        hr = batch.hr.float() / 255
        size, scores = (hr.shape[-2], hr.shape[-1]), {}
        for preset in self.module.pairs.presets:
            fixed = dataclasses.replace(self.module.pairs, presets=(preset,), preset_weights=(1.0,))
            lr = degrade_each(hr, batch.seeds, fixed)
            scores[f"psnr_{preset}"] = psnr(self.module.clean(lr, size), hr * 2 - 1)
            scores[f"psnr_{preset}_input"] = psnr(resize(lr, size) * 2 - 1, hr * 2 - 1)
        return Validation(scores, {})

    def export(self, averaged: Mapping[str, Tensor], folder: Path, training: Mapping[str, Any]) -> list[Path]:
        """Write autoencoder.safetensors."""
        state = averaged_state(self.module.autoencoder, averaged, "autoencoder.")
        save_weights(folder / FILE, state, training={"kind": "autoencoder", **training})
        return [folder / FILE]


def main() -> None:
    """Run from the command line."""
    config = parse_config({"tiny": tiny, "debug": debug}, description=__doc__)
    Trainer(CleanerTask(config), config.loop, config.data, config.run_dir, dataclasses.asdict(config)).run()


if __name__ == "__main__":
    run_script(main)
