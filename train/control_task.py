"""What train_psi_dit trains: a control (and image prompt) on a frozen base, validated as a user would sample it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eam_core.checkpoint import IMAGE_PROMPT_PREFIX
from eam_core.device import without_autocast
from eam_core.errors import CheckpointError, EAMError
from eam_core.flow import schedule, timestep
from eam_core.mim import keep_tokens, mask_ratio
from eam_core.model.autoencoder import DOWNSCALE, PatchAutoencoder, unscale_latents
from eam_core.model.mmdit import MMDiTParams
from eam_core.model.recompute import RecomputedGuest
from eam_core.vision import to_pixels
from eam_core.weight_files import save_weights
from train.config import LoopConfig
from train.data import Batch, DataConfig
from train.objective import ObjectiveConfig, draw, losses, sample_noise
from train.pairs import PairConfig, Pairs, make_pairs, psnr
from train.parts import Parts, PartsConfig, TrainingText, load_parts
from train.restoring import random_positions, sample, strips
from train.seeding import generator, sample_seed
from train.task import Validation, averaged_state

SHARDED = {"JointBlock", "ControlBlock", "ImagePromptBlock"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """One control run, complete.

    Args:
        run_dir: folder of the run: settings, log, checkpoints, exported weights.
        recipe: name of the recipe that the settings come from.
        positions: "centred" in the base's position table, as SD3 does, or "random" places of its middle half, for a
            small base whose table has been trained there.
        val_count: held-out pictures that are validated, per degradation.
        val_size: their size in pixels.
        val_steps: sampling steps of validation.
        val_sigma_start: where its sampling starts; below 1 from the LR latents.
    """

    run_dir: str
    recipe: str
    parts: PartsConfig = PartsConfig()  # noqa: RUF009 (frozen)
    data: DataConfig
    pairs: PairConfig = PairConfig()  # noqa: RUF009
    objective: ObjectiveConfig = ObjectiveConfig()  # noqa: RUF009
    loop: LoopConfig
    positions: Literal["centred", "random"] = "centred"
    val_count: int = 16
    val_size: int = 128
    val_steps: int = 1
    val_sigma_start: float = 0.7

    def __post_init__(self):
        if self.objective.masked_steps > self.loop.steps:
            raise ValueError(
                f"expected masked_steps of at most steps {self.loop.steps}, got {self.objective.masked_steps}"
            )
        for field in ("val_count", "val_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"expected {field} of at least 1, got {getattr(self, field)}")
        if self.val_size < 16 or self.val_size % 16:
            raise ValueError(f"expected val_size to be a multiple of 16, got {self.val_size}")
        if self.data.captions == "none" and self.parts.text_cache:
            raise ValueError("expected captions 'sa' or 'da' with a text_cache, got 'none'")
        schedule(self.val_steps, self.objective.shift, self.val_sigma_start)


class ControlObjective(nn.Module):
    """The module that the trainer calls: from a batch of photos to its losses."""

    def __init__(self, parts: Parts, config: ControlConfig):
        """Join the networks of a run; only control and image prompt are trained."""
        super().__init__()
        self.config, self.text, self.autoencoder = config, parts.text, parts.autoencoder
        self.model, self.tower = parts.model, parts.tower.model if parts.tower else None
        self.null = parts.text.null()
        self.model.control.requires_grad_(True)
        # By this name accelerate looks for what FSDP shards one by one.
        self._no_split_modules = sorted({type(m).__name__ for m in self.model.modules()} & SHARDED)
        if config.parts.gradient_checkpointing == "on":
            self.model.wrap_guest = RecomputedGuest
        if config.parts.compile == "on":
            self.model.compile()

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return per-sample losses, "sigma" and the step's "mask_ratio"."""
        objective, hr = self.config.objective, batch.hr.float() / 255
        pairs = self.pairs(hr, batch.seeds)
        draws = draw(pairs, batch.seeds, objective)
        keep, ratio = self._keep(batch.seeds, pairs.lr_latents, step)
        positions = None
        if self.config.positions == "random":
            positions = random_positions(self.model.base, pairs.hr_latents, self._step_generator(step, "positions"))
        velocity = self.model(
            draws.x,
            timestep(draws.sigma),
            *self.texts(batch.captions, draws.drop_text),
            pairs.lr_latents,
            keep=keep,
            positions=positions,
            image_tokens=self.image_tokens(pairs),
        )
        out = losses(velocity, draws, pairs, objective.loss, self.autoencoder)
        return {**out, "sigma": draws.sigma, "mask_ratio": torch.full_like(draws.sigma, ratio)}

    @torch.no_grad()
    def pairs(self, hr: Tensor, seeds: Tensor) -> Pairs:
        """Degrade and encode HR pictures [B, 3, H, W] in [0, 1]."""
        with without_autocast(hr.device):
            return make_pairs(hr, seeds, self.config.pairs, self.autoencoder)

    def texts(self, captions: list[str], drop: Tensor) -> TrainingText:
        """Return context and pooled vectors; samples marked in `drop` [B] get those of no text."""
        device = drop.device
        read = self.text.read(captions)
        shape = [(-1, 1, 1), (-1, 1)]
        context, pooled = (
            torch.where(drop.view(view), empty.to(device), given.to(device))
            for view, given, empty in zip(shape, read, self.null)
        )
        return context, pooled

    @torch.no_grad()
    def image_tokens(self, pairs: Pairs) -> Tensor | None:
        """Return what the vision tower sees in the LR pictures; None without one."""
        if self.tower is None:
            return None
        pixels = to_pixels(pairs.lr, self.tower.config.image_size)
        return self.tower(pixels.to(self.tower.dtype)).last_hidden_state.float()

    def _keep(self, seeds: Tensor, lr_latents: Tensor, step: int) -> tuple[Tensor | None, float]:
        """Draw the LR tokens that stay in this step, and the ratio of those that do not."""
        objective, patch = self.config.objective, self.model.base.params.patch_size
        if step >= objective.masked_steps:
            return None, 0.0
        ratio = mask_ratio(objective.mask, step, objective.masked_steps, self._step_generator(step, "mask"))
        num_tokens = -(-lr_latents.shape[-2] // patch) * -(-lr_latents.shape[-1] // patch)
        keep = keep_tokens(num_tokens, ratio, [generator(seed, "mask") for seed in seeds.tolist()])
        return (None if keep is None else keep.to(lr_latents.device)), ratio

    def _step_generator(self, step: int, purpose: str) -> torch.Generator:
        """Return a generator for what all samples and processes of a step share."""
        return generator(sample_seed(self.config.loop.seed, step), purpose)


class ControlTask:
    """A control run as the trainer sees it."""

    batches_may_leave_parts_unused = False
    unsharded = ("autoencoder", "tower")

    def __init__(self, config: ControlConfig):
        """Load the networks."""
        dtype = torch.bfloat16 if config.loop.precision == "bf16" else torch.float32
        parts = load_parts(config.parts, base_dtype=dtype, seed=config.loop.seed)
        if config.objective.loss == "picture" and not isinstance(parts.autoencoder, PatchAutoencoder):
            raise CheckpointError(
                f"expected an EAM autoencoder for the picture loss, got {config.parts.autoencoder}; use --loss velocity"
            )
        _check_sizes(config, parts.model.base.params)
        self.config, self.name = config, config.recipe
        self.val_count, self.val_size = config.val_count, config.val_size
        self.module = ControlObjective(parts, config)

    @torch.no_grad()
    def validate(self, batch: Batch) -> Validation:
        """Sample held-out pictures: PSNR per degradation, and strips of LR, restored and HR."""
        config, module = self.config, self.module
        hr = batch.hr.float() / 255
        text = module.texts(batch.captions, torch.zeros(len(hr), dtype=torch.bool, device=hr.device))
        scores, pictures = {}, {}
        for preset in config.pairs.presets:
            fixed = dataclasses.replace(config.pairs, presets=(preset,), preset_weights=(1.0,))
            pairs = make_pairs(hr, batch.seeds, fixed, module.autoencoder)
            latents = sample(
                module.model,
                pairs.lr_latents,
                text,
                sample_noise(pairs.hr_latents, batch.seeds),
                schedule(config.val_steps, config.objective.shift, config.val_sigma_start),
                image_tokens=module.image_tokens(pairs),
            )
            restored = module.autoencoder.decode(unscale_latents(latents)).float()
            scores[f"psnr_{preset}"] = psnr(restored, hr * 2 - 1)
            pictures[preset] = strips(pairs, restored)
        return Validation(scores, pictures)

    def export(self, averaged: Mapping[str, Tensor], folder: Path, training: Mapping[str, Any]) -> list[Path]:
        """Write control.safetensors: the control, and the image prompt under its prefix."""
        model = self.module.model
        state = averaged_state(model.control, averaged, "model.control.")
        if model.image_prompt is not None:
            prompt = averaged_state(model.image_prompt, averaged, "model.image_prompt.")
            state |= {IMAGE_PROMPT_PREFIX + key: value for key, value in prompt.items()}
        path = folder / "control.safetensors"
        save_weights(path, state, training={"kind": "control", **training})
        return [path]


def _check_sizes(config: ControlConfig, base: MMDiTParams) -> None:
    """Refuse crops that the base's position table does not cover.

    Raises:
        EAMError: a crop is larger.
    """
    side = base.pos_embed_max_size // (2 if config.positions == "random" else 1)
    limit, largest = side * base.patch_size * DOWNSCALE, max(*config.data.crop_sizes, config.val_size)
    if largest > limit:
        raise EAMError(
            f"expected crop_sizes and val_size of at most {limit} pixels for this base with {config.positions} "
            f"positions, got {largest}; lower them"
        )
