"""Train the embedded default's autoencoder: a lapped linear transform first, then the decoder's residual network.

Its cleaner, for degraded pictures, has a stage of its own: train_cleaner.

The transform starts as principal components and fixes the latents, so that the base can be trained on them while the
decoder still improves. Loss of both phases: L1 on pixels and on their gradients. The first phase is a run of its own in
the folder `linear` of the run's folder.

python -m train.train_autoencoder tiny --data FOLDER_OR_TAR ... --run-dir DIR
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eam_core.checkpoint import build_autoencoder
from eam_core.model.autoencoder import PATCH, AutoencoderParams, PatchAutoencoder
from eam_core.weight_files import read_weights, save_weights
from train.config import LoopConfig
from train.data import Batch, DataConfig, TrainingData
from train.options import parse_config, run_script
from train.pairs import gradient_l1, pixel_l1, psnr
from train.task import Validation, averaged_state
from train.trainer import Trainer

Phase = Literal["linear", "decoder"]
VAL_COUNT, INIT_COUNT = 48, 400
FILE = "autoencoder.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """One run of both phases.

    Args:
        run_dir: folder of the run.
        start: a file whose linear transform is trained already: only the decoder is trained then.
        coarse_width: channels of the residual network at 1/8 size.
        coarse_blocks: its residual blocks.
        fine_width: channels of the residual network at 1/4 size.
        fine_blocks: its residual blocks.
        full_width: channels of the convolutions at full size.
        clean_width: channels of the cleaner.
        clean_blocks: its residual blocks.
        linear_steps: steps of the first phase.
        linear_lr: its learning rate.
    """

    run_dir: str = "runs/autoencoder"
    start: str = ""
    coarse_width: int = AutoencoderParams.coarse_width
    coarse_blocks: int = AutoencoderParams.coarse_blocks
    fine_width: int = AutoencoderParams.fine_width
    fine_blocks: int = AutoencoderParams.fine_blocks
    full_width: int = AutoencoderParams.full_width
    clean_width: int = AutoencoderParams.clean_width
    clean_blocks: int = AutoencoderParams.clean_blocks
    linear_steps: int = 350
    linear_lr: float = 2e-3
    data: DataConfig = DataConfig(data=("data/photos",), crop_sizes=(128,))  # noqa: RUF009 (frozen)
    loop: LoopConfig = LoopConfig(steps=800, batch_size=8, lr=1e-3, ema=0.995, save_every=200, validate_every=200)  # noqa: RUF009

    @property
    def params(self) -> AutoencoderParams:
        """The architecture."""
        names = {field.name for field in dataclasses.fields(AutoencoderParams)} - {"latent_channels"}
        return AutoencoderParams(**{name: getattr(self, name) for name in names})


def tiny() -> AutoencoderConfig:
    """The embedded default's autoencoder; its decoder goes on learning in train_few_step."""
    return AutoencoderConfig()


def debug() -> AutoencoderConfig:
    """Seconds on a CPU: proves the path, learns nothing."""
    data = DataConfig(data=("data/photos",), crop_sizes=(64,), held_out=3, num_workers=0)
    loop = LoopConfig(steps=4, batch_size=2, lr=1e-3, warmup=1, save_every=2, log_every=1, validate_every=2)
    sizes = {"coarse_width": 8, "coarse_blocks": 1, "fine_width": 8, "fine_blocks": 1, "full_width": 4}
    return AutoencoderConfig(data=data, loop=loop, linear_steps=4, clean_width=8, clean_blocks=1, **sizes)


class AutoencoderObjective(nn.Module):
    """From a batch of photos to the distance of what is decoded."""

    def __init__(self, autoencoder: PatchAutoencoder, phase: Phase):
        """Freeze what the phase does not train."""
        super().__init__()
        self.autoencoder, self.phase = autoencoder, phase
        autoencoder.requires_grad_(phase == "decoder")
        autoencoder.encoder.requires_grad_(phase == "linear")
        autoencoder.decoder.linear.requires_grad_(True)
        autoencoder.cleaner.requires_grad_(False)  # train_cleaner's

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return "loss" [B] and its parts."""
        images = batch.hr.float() / 127.5 - 1
        raw = self.autoencoder.encode(images)
        output = self.autoencoder.decoder.synthesize(raw) if self.phase == "linear" else self.autoencoder.decode(raw)
        pixel, gradient = pixel_l1(output, images), gradient_l1(output, images)
        return {"loss": pixel + gradient, "l1": pixel, "gradient_l1": gradient}


class AutoencoderTask:
    """One phase as the trainer sees it."""

    batches_may_leave_parts_unused = False
    unsharded = ()

    def __init__(self, config: AutoencoderConfig, autoencoder: PatchAutoencoder, phase: Phase):
        """Take the autoencoder as the phase before left it."""
        self.name, self.val_count, self.val_size = f"autoencoder ({phase})", VAL_COUNT, config.data.crop_sizes[0]
        self.module = AutoencoderObjective(autoencoder.to(memory_format=torch.channels_last), phase)

    @torch.no_grad()
    def validate(self, batch: Batch) -> Validation:
        """Return PSNR on held-out pictures, of the whole decoder and of its linear part."""
        autoencoder = self.module.autoencoder
        images = batch.hr.float() / 127.5 - 1
        raw = autoencoder.encode(images)
        decoded, linear = autoencoder.decode(raw), autoencoder.decoder.synthesize(raw)
        return Validation({"psnr": psnr(decoded, images), "psnr_linear": psnr(linear, images)}, {})

    def export(self, averaged: Mapping[str, Tensor], folder: Path, training: Mapping[str, Any]) -> list[Path]:
        """Write autoencoder.safetensors."""
        state = averaged_state(self.module.autoencoder, averaged, "autoencoder.")
        save_weights(folder / FILE, state, training={"kind": "autoencoder", **training})
        return [folder / FILE]


def train_autoencoder(config: AutoencoderConfig) -> None:
    """Run both phases, or the second alone from a given start."""
    start = config.start
    if not start:
        loop = dataclasses.replace(config.loop, steps=config.linear_steps, lr=config.linear_lr)
        start = str(_run(config, _from_photos(config), "linear", loop, Path(config.run_dir) / "linear") / FILE)
    _run(config, build_autoencoder(read_weights(start), start), "decoder", config.loop, Path(config.run_dir))


def _run(
    config: AutoencoderConfig, autoencoder: PatchAutoencoder, phase: Phase, loop: LoopConfig, run_dir: Path
) -> Path:
    settings = {**dataclasses.asdict(config), "phase": phase}
    return Trainer(AutoencoderTask(config, autoencoder, phase), loop, config.data, str(run_dir), settings).run()


def _from_photos(config: AutoencoderConfig) -> PatchAutoencoder:
    """Start from the principal components of the photos' patches."""
    torch.manual_seed(config.loop.seed)
    autoencoder = PatchAutoencoder(config.params)
    crops = next(TrainingData(config.data, seed=config.loop.seed, batch_size=INIT_COUNT).batches()).hr
    patches = F.unfold(crops.float() / 127.5 - 1, PATCH, stride=PATCH)
    autoencoder.init_from_patches(patches.permute(0, 2, 1).reshape(-1, 3, PATCH, PATCH))
    return autoencoder


def main() -> None:
    """Run from the command line."""
    train_autoencoder(parse_config({"tiny": tiny, "debug": debug}, description=__doc__))


if __name__ == "__main__":
    run_script(main)
