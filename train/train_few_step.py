"""Tune a trained control and the decoder for few sampling steps: sample as a user would, score the decoded picture.

The sampler starts from the LR latents at `sigma_start` and takes a random number of steps; gradients flow through the
last one. Loss: L1 on pixels and their gradients of the decoded picture, and a perceptual distance (ST-LPIPS, VGG
variant; the AlexNet variant is kept for scoring). A penalty keeps the perceptual distance from rewarding a regular grid
of detail, which it does not tell from texture.

The decoder learns from restored latents and, one step in eight, from those of clean photos, so that it stays one.
Writes control.safetensors and autoencoder.safetensors into the run folder.

python -m train.train_few_step tiny --data FOLDER_OR_TAR ... --start CONTROL --autoencoder FILE --run-dir DIR
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eam_core.errors import CheckpointError
from eam_core.flow import schedule
from eam_core.model.autoencoder import PatchAutoencoder, unscale_latents
from eam_core.weight_files import save_weights
from train.config import LoopConfig
from train.data import Batch, DataConfig
from train.metrics import perceptual_metric
from train.objective import sample_noise
from train.options import parse_config, run_script
from train.pairs import TINY_PAIRS, WINDOW, PairConfig, Pairs, gradient_l1, grid_strength, make_pairs, pixel_l1, psnr
from train.parts import Parts, PartsConfig, load_parts
from train.restoring import random_positions, sample, strips
from train.seeding import generator, sample_seed
from train.task import Validation, averaged_state
from train.trainer import Trainer

CLEAN_EVERY = 8
VAL_COUNT = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewStepConfig:
    """One run; its input is what the sampler itself makes.

    Args:
        run_dir: folder of the run.
        sigma_start: noise level at which the sampler starts from the LR latents.
        num_steps: numbers of sampling steps to draw from; one that is listed twice is drawn twice as often.
        perceptual_weight: of the perceptual distance, beside an L1 of weight 1; 0 needs no metric's package.
        grid_weight: of detail that keeps to the places of a token, see `pairs.grid_strength`.
    """

    run_dir: str = "runs/few_step"
    sigma_start: float = 0.5
    num_steps: tuple[int, ...] = (1, 1, 1, 2)
    perceptual_weight: float = 1.0
    grid_weight: float = 1.0
    parts: PartsConfig = PartsConfig(start="runs/control/control.safetensors")  # noqa: RUF009 (frozen)
    data: DataConfig = DataConfig(data=("data/photos",), crop_sizes=(128,))  # noqa: RUF009
    pairs: PairConfig = TINY_PAIRS
    loop: LoopConfig = LoopConfig(steps=1200, batch_size=5, lr=4e-4, ema=0.99, save_every=100, validate_every=100)  # noqa: RUF009

    def __post_init__(self):
        if not self.parts.start:
            raise ValueError("expected control weights to tune, got an empty start; train them with train_psi_dit")
        for steps in self.num_steps:
            schedule(steps, 1.0, self.sigma_start)
        weights = {name: getattr(self, f"{name}_weight") for name in ("perceptual", "grid")}
        if not self.num_steps or min(weights.values()) < 0:
            raise ValueError(f"expected num_steps and weights of at least 0, got {self.num_steps} and {weights}")
        if self.grid_weight and min(self.data.crop_sizes) < WINDOW + 2:
            raise ValueError(
                f"expected crops of at least {WINDOW + 2} pixels with a grid_weight, got {min(self.data.crop_sizes)}"
            )


def tiny() -> FewStepConfig:
    """The last stage of the embedded default."""
    return FewStepConfig()


def debug() -> FewStepConfig:
    """Seconds on a CPU: proves the path, learns nothing."""
    data = DataConfig(data=("data/photos",), crop_sizes=(64,), held_out=3, num_workers=0)
    loop = LoopConfig(steps=2, batch_size=1, lr=1e-4, warmup=1, save_every=2, log_every=1, validate_every=2)
    return FewStepConfig(data=data, loop=loop, perceptual_weight=0.0, grid_weight=0.0)


class FewStepObjective(nn.Module):
    """From a batch of photos to the distance of what a user would see; trains the control and the decoder."""

    autoencoder: PatchAutoencoder

    def __init__(self, parts: Parts, config: FewStepConfig):
        """Unfreeze control and decoder."""
        super().__init__()
        if not isinstance(parts.autoencoder, PatchAutoencoder):
            raise CheckpointError(f"expected an EAM autoencoder to tune, got {config.parts.autoencoder}")
        self.model, self.autoencoder, self.text, self.config = parts.model, parts.autoencoder, parts.text, config
        self.model.control.requires_grad_(True)
        self.autoencoder.decoder.requires_grad_(True)
        self.distance = perceptual_metric("stlpips-vgg") if config.perceptual_weight else None

    def restore(self, pairs: Pairs, seeds: Tensor, num_steps: int, positions: Tensor | None = None) -> Tensor:
        """Sample and decode: pictures [B, 3, H, W] in about [-1, 1]."""
        text = tuple(part.to(pairs.hr.device) for part in self.text.read([""] * len(pairs.hr)))
        sigmas = schedule(num_steps, 1.0, self.config.sigma_start)
        noise = sample_noise(pairs.hr_latents, seeds)
        latents = sample(self.model, pairs.lr_latents, text, noise, sigmas, positions=positions)
        return self.autoencoder.decode(unscale_latents(latents))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return "loss" [B] and its parts."""
        config, shared = self.config, sample_seed(self.config.loop.seed, step)
        pairs = make_pairs(batch.hr.float() / 255, batch.seeds, config.pairs, self.autoencoder)
        if step % CLEAN_EVERY:
            choice = torch.randint(len(config.num_steps), (), generator=generator(shared, "num_steps"))
            positions = random_positions(self.model.base, pairs.hr_latents, generator(shared, "positions"))
            picture = self.restore(pairs, batch.seeds, config.num_steps[int(choice)], positions)
        else:
            picture = self.autoencoder.decode(unscale_latents(pairs.hr_latents))
        target = pairs.hr * 2 - 1
        out = {"l1": pixel_l1(picture, target), "gradient_l1": gradient_l1(picture, target)}
        loss = out["l1"] + out["gradient_l1"]
        if self.distance:
            out["perceptual"] = self.distance(picture.clamp(-1, 1) / 2 + 0.5, pairs.hr)
            loss = loss + config.perceptual_weight * out["perceptual"]
        if config.grid_weight:
            out["grid"] = grid_strength(picture).expand(len(picture))
            loss = loss + config.grid_weight * out["grid"]
        return {"loss": loss, **out}


class FewStepTask:
    """A few-step run as the trainer sees it."""

    name = "few-step"
    batches_may_leave_parts_unused = True  # steps on clean photos leave the control alone
    unsharded = ("distance",)

    def __init__(self, config: FewStepConfig):
        """Load the networks and the metrics."""
        self.config, self.val_count, self.val_size = config, VAL_COUNT, config.data.crop_sizes[0]
        self.module = FewStepObjective(load_parts(config.parts), config)
        self.score = perceptual_metric("stlpips") if config.perceptual_weight else None

    @torch.no_grad()
    def validate(self, batch: Batch) -> Validation:
        """Sample held-out pictures with the most steps: PSNR and ST-LPIPS (AlexNet) per degradation."""
        config, module = self.config, self.module
        hr = batch.hr.float() / 255
        scores, pictures = {}, {}
        for preset in config.pairs.presets:
            fixed = dataclasses.replace(config.pairs, presets=(preset,), preset_weights=(1.0,))
            pairs = make_pairs(hr, batch.seeds, fixed, module.autoencoder)
            restored = module.restore(pairs, batch.seeds, max(config.num_steps)).clamp(-1, 1)
            scores[f"psnr_{preset}"] = psnr(restored, hr * 2 - 1)
            if self.score:
                scores[f"stlpips_{preset}"] = self.score.to(hr.device)(restored / 2 + 0.5, hr).mean().item()
            pictures[preset] = strips(pairs, restored)
        return Validation(scores, pictures)

    def export(self, averaged: Mapping[str, Tensor], folder: Path, training: Mapping[str, Any]) -> list[Path]:
        """Write control.safetensors and autoencoder.safetensors."""
        written = []
        for kind, prefix, part in (
            ("control", "model.control.", self.module.model.control),
            ("autoencoder", "autoencoder.", self.module.autoencoder),
        ):
            state = averaged_state(part, averaged, prefix)
            written.append(folder / f"{kind}.safetensors")
            save_weights(written[-1], state, training={**training, "kind": kind})
        return written


def main() -> None:
    """Run from the command line."""
    config = parse_config({"tiny": tiny, "debug": debug}, description=__doc__)
    Trainer(FewStepTask(config), config.loop, config.data, config.run_dir, dataclasses.asdict(config)).run()


if __name__ == "__main__":
    run_script(main)
