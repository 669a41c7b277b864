"""One restoration's denoiser: the network over tiles, under LR control and guidance, as samplers call it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .flow import denoised_from_velocity, schedule, timestep
from .full_precision import in_float32
from .guidance import (
    cfg,
    cfg_scale_at,
    control_scale_at,
    needs_negative,
    percent_to_sigma,
    restoration_guidance,
)
from .lr_memory import LRMemories, memory_bytes
from .model.family import LRState
from .model.psi_dit import PsiDiT
from .restore_config import RestoreConfig
from .tile_batch import TileBatch, meter_for, most_auto
from .tile_plan import overlaps_in
from .tile_run import TileRun
from .tiling import Box, TileGrid

LR_MEMORY_BYTES = 2**30  # remembered LR keys and values of all tiles; tiles beyond are computed anew at each step

Progress = Callable[[int, int], None]
"""Called as (tiles done, tiles in all), counted over all steps; may raise to stop."""


class Text(NamedTuple):
    """What the network is told of one prompt: tokens [1, T, context_size] and pooled vector [1, pooled_size]."""

    context: Tensor
    pooled: Tensor


class TiledDenoiser:
    """Denoise whole latents tile by tile under LR control: the `denoise` that samplers call."""

    def __init__(
        self,
        model: PsiDiT,
        lr_latents: Tensor,
        positive: Text,
        negative: Text | None,
        config: RestoreConfig,
        on_progress: Progress | None = None,
        image_tokens: Tensor | None = None,
        *,
        fixed_tiles: bool = False,
    ):
        """Set up one run.

        Args:
            model: the network.
            lr_latents: [B, C, H, W] as the network takes them.
            positive, negative: texts; negative None without guidance.
            config: settings.
            on_progress: see `Progress`.
            image_tokens: the vision tower's tokens [B, T, image_size] of the whole pictures, used in every tile; None
                runs without image prompt.
            fixed_tiles: see `TileRun`.
        """
        self.model, self.lr_latents, self.config = model, lr_latents, config
        self.positive, self.negative = positive, negative
        self.dtype = next(model.parameters()).dtype
        self.memories = LRMemories()
        grid, device = config.latent_grid(*lr_latents.shape[-2:]), lr_latents.device
        most = 1 if fixed_tiles else most_auto(device, len(lr_latents) * grid.tile_height * grid.tile_width)
        tile_batch = TileBatch(config.tile_batch, most_auto=most, meter=meter_for(device), release=self.memories.forget)
        precisely = None if self.dtype == torch.float32 else self._precisely
        self.run = TileRun(
            grid,
            tile_batch,
            precisely,
            blend_every_step=config.blend_every_step,
            fixed=fixed_tiles,
        )
        self.image_tokens = None if image_tokens is None else image_tokens.to(lr_latents.device, self.dtype)
        self.control_range = self._sigmas_at(config.control_start, config.control_end)
        self.cfg_window = self._sigmas_at(config.cfg_start_percent, config.cfg_end_percent)
        sigmas = schedule(config.steps, config.shift, config.sigma_start, scheduler=config.scheduler)
        self.sigmas = sigmas[:-1].tolist()  # of the calls: one in each step
        self.on_progress, self.steps_done, self.tiles_done = on_progress, 0, 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the denoised of latents x [B, C, H, W] at a noise level."""
        config = self.config
        control_scale = control_scale_at(sigma, config.control_scale, *self.control_range)
        end = config.cfg_scale if config.cfg_scale_end is None else config.cfg_scale_end
        cfg_scale = cfg_scale_at(sigma, config.cfg_scale, end, self.cfg_window)

        def denoise_tiles(tiles: Tensor, lr_tiles: Tensor, boxes: list[Box]) -> Tensor:
            lr = self._lr_state(lr_tiles.to(self.dtype), boxes) if control_scale else None
            velocity = self._velocity(tiles, sigma, self.positive, lr, control_scale)
            if self.negative is not None and needs_negative(cfg_scale):
                velocity = cfg(velocity, self._velocity(tiles, sigma, self.negative, lr, control_scale), cfg_scale)
            return denoised_from_velocity(tiles, velocity, sigma)

        step, num_tiles = self.steps_done, 0
        left = sum(self._grid_of(later).num_tiles for later in range(step + 1, config.steps)) if self.on_progress else 0
        self.memories.keeps = step < config.steps - 1

        def on_tile(done: int, total: int) -> None:
            nonlocal num_tiles
            num_tiles = total
            if self.on_progress:
                self.on_progress(self.tiles_done + done, self.tiles_done + total + left)

        def where() -> str:
            return f"step {step + 1} (sigma {sigma:.3f})"

        given = {"step": step, "blend": self._blends(step), "extras": (self.lr_latents,)}
        denoised = self.run(denoise_tiles, x, where, **given, on_tile=on_tile)
        self.steps_done, self.tiles_done = step + 1, self.tiles_done + num_tiles
        return restoration_guidance(denoised, self.lr_latents, sigma, config.fidelity, config.sigma_start)

    def _sigmas_at(self, start_percent: float, end_percent: float) -> tuple[float, float]:
        return percent_to_sigma(start_percent, self.config.shift), percent_to_sigma(end_percent, self.config.shift)

    def _blends(self, step: int) -> bool:
        return step >= len(self.sigmas) - 1 or overlaps_in(self.sigmas[step], self.sigmas[-1])

    def _grid_of(self, step: int) -> TileGrid:
        return self.run.grid_of(step, self._blends(step))

    def _velocity(self, tiles: Tensor, sigma: float, text: Text, lr: LRState | None, control_scale: float) -> Tensor:
        num = len(tiles)
        args = (
            tiles.to(self.dtype),
            torch.full((num,), timestep(sigma), device=tiles.device),
            text.context.to(self.dtype).expand(num, -1, -1),
            text.pooled.to(self.dtype).expand(num, -1),
        )
        prompt = {}
        if self.image_tokens is not None:
            # Tiles lie one after the other, each with all pictures of the batch.
            prompt["image_tokens"] = self.image_tokens.to(self.dtype).repeat(num // len(self.image_tokens), 1, 1)
        return self.model(*args, lr, control_scale=control_scale, **prompt).to(tiles)

    def _lr_state(self, lr_tiles: Tensor, boxes: list[Box]) -> LRState:
        """Return the LR tiles, or their keys and values where these are the same at every step."""
        control = self.model.control
        if not control.can_remember:
            return lr_tiles
        memory = self.memories.state(
            lr_tiles,
            boxes,
            self.model.remember,
            num_bytes=memory_bytes(control.params, lr_tiles),
            limit=lambda: LR_MEMORY_BYTES,
            key=self.dtype,
            pays=lambda: self.negative is not None,
        )
        return lr_tiles if memory is None else memory

    @contextmanager
    def _precisely(self) -> Iterator[None]:
        """Run the network in float32 for a while."""
        dtype = self.dtype
        try:
            with in_float32(self.model):
                self.dtype = torch.float32
                yield
        finally:
            self.dtype = dtype
