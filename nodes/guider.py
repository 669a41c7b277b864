"""The guider behind EAM_TiledSampler: core's prediction tile by tile, blended, and pulled towards the LR latents."""

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.conds import CONDNoiseShape
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ..eam_core.guidance import cfg_scale_at, restoration_guidance
from ..eam_core.tiling import Box, TileBatch, TileGrid, tiled
from .hooks import LR_COND, check_lr_size
from .progress import Progress
from .tile_conditioning import Cond, TileConditioning, TilePrompts

_FEATHER = 8  # latents; core fades the inner edges of an area over as many


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """Tiles of the latents; `tile_batch` of them go through the model at once."""

    tile: int
    overlap: int
    tile_batch: int


class TiledGuider(comfy.samplers.CFGGuider):
    """CFGGuider that predicts the denoised latents tile by tile at every step."""

    progress: Progress | None = None
    """Is told of each tile."""

    def __init__(self, model: ModelPatcher, tiling: TilingConfig, *, cfg_start: float, cfg_end: float, fidelity: float):
        """Keep the settings.

        Args:
            model: MODEL to sample with.
            tiling: sizes in latents.
            cfg_start: CFG scale at sigma 1.
            cfg_end: CFG scale at sigma 0.
            fidelity: strength of restoration guidance in [0, 1].
        """
        super().__init__(model)
        self.tiling, self.cfg_start, self.cfg_end, self.fidelity = tiling, cfg_start, cfg_end, fidelity
        self.tile_prompts = TilePrompts([], 0.0)
        self.tile_batch = TileBatch(tiling.tile_batch)

    def set_tile_prompts(self, prompts: TileConditioning, strength: float) -> None:
        """Let each tile follow a prompt of its own beside the global one; `set_conds` comes first.

        Raises:
            CheckpointError: the prompts come from another kind of text encoder than the positive conditioning.
        """
        self.tile_prompts = TilePrompts(prompts, strength)
        self.original_conds |= self.tile_prompts.conds(self.original_conds["positive"])

    def outer_sample(self, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Sample, and ask core only for the memory of the tiles that run at once."""
        wrapper = (WrappersMP.PREPARE_SAMPLING, "eam_tiles", self._shrink_noise_shape)
        add_wrapper_with_key(*wrapper, self.model_options, is_model_options=True)
        return super().outer_sample(noise, *args, **kwargs)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Return the denoised latents for x [B, C, H, W] at sigma `timestep` [B]."""
        options = model_options or {}
        sigma = float(timestep[0])
        self.cfg = cfg_scale_at(sigma, self.cfg_start, self.cfg_end)
        grid = self._grid(*x.shape[-2:])
        size, whole = x.shape[-2:], len(grid.boxes) == 1

        def cut(name: str, boxes: list[Box]) -> list[Cond]:
            return self.conds[name] if whole else conds_for_tiles(self.conds[name], boxes, x)

        def predict(tiles: Tensor, boxes: list[Box]) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            negative, positive = cut("negative", boxes), self.tile_prompts.positive(cut, boxes, size)
            levels = timestep.repeat(len(boxes))
            return comfy.samplers.sampling_function(
                self.inner_model, tiles, levels, negative, positive, self.cfg, model_options=options, seed=seed
            )

        grouped = self.tile_prompts.in_groups(predict, self.conds, size)
        sigmas = options["transformer_options"]["sample_sigmas"]  # of this run; a control may have chosen others
        watched = self.progress.watching(grouped, x, grid, len(sigmas) - 1) if self.progress else grouped
        denoised = tiled(watched, x, grid, tile_batch=self.tile_batch)
        return self._guide(denoised, sigma, sigma_start=float(sigmas[0]))

    def _grid(self, height: int, width: int) -> TileGrid:
        return TileGrid(height=height, width=width, tile=self.tiling.tile, overlap=self.tiling.overlap)

    def _guide(self, denoised: Tensor, sigma: float, sigma_start: float) -> Tensor:
        if self.fidelity == 0:
            return denoised
        found = [cond["model_conds"][LR_COND] for cond in self.conds["positive"] if LR_COND in cond["model_conds"]]
        if not found:
            raise ValueError("expected conditioning from EAM_ApplyControl, got none; connect it or set fidelity to 0")
        lr = repeat_to_batch_size(found[0].cond, len(denoised)).to(denoised)
        return restoration_guidance(denoised, lr, sigma, self.fidelity, sigma_start)

    def _shrink_noise_shape(
        self, executor: Any, model: ModelPatcher, noise_shape: list[int], *args: Any, **kwargs: Any
    ) -> Any:
        batch, channels, *size = noise_shape
        grid = self._grid(*size)
        at_once = batch * min(self.tiling.tile_batch, len(grid.boxes))
        return executor(model, [at_once, channels, grid.tile_height, grid.tile_width], *args, **kwargs)


def conds_for_tiles(conds: list[Cond], boxes: list[Box], x: Tensor) -> list[Cond]:
    """Cut conditioning to tiles that are stacked tile-major along the batch axis.

    Args:
        conds: as core keeps them while sampling.
        boxes: of the tiles.
        x: the whole latents [B, C, H, W].

    Returns:
        The conditioning of the tiles; entries whose area or mask lies beside them are left out.

    Raises:
        ValueError: LR latents of another size; a ControlNet or GLIGEN, whose hint core cannot cut to a tile.
    """
    tiled_conds = []
    for cond in conds:
        for key, name in (("control", "a ControlNet"), ("gligen", "GLIGEN")):
            if key in cond:
                raise ValueError(
                    f"expected conditioning that can be cut into tiles, got {name}; remove it, or set tile to the "
                    "size of the result"
                )
        if LR_COND in cond["model_conds"]:
            check_lr_size(cond["model_conds"][LR_COND].cond, x)
        out = {**cond, "model_conds": {k: _cut_cond(v, boxes, len(x)) for k, v in cond["model_conds"].items()}}
        mask = _mask(cond, x)
        if mask is not None:
            out["mask"] = _cut(repeat_to_batch_size(mask, len(x)), boxes)
            out.pop("area", None)
            if not out["mask"].any():
                continue
        tiled_conds.append(out)
    return tiled_conds


def _cut_cond(cond: Any, boxes: list[Box], batch: int) -> Any:
    """Cut what has the latents' shape; repeat everything else for each tile."""
    cond = cond.process_cond(batch_size=batch, area=None)
    if isinstance(cond, CONDNoiseShape):
        return CONDNoiseShape(_cut(cond.cond, boxes))
    return cond.process_cond(batch_size=batch * len(boxes), area=None)


def _cut(tensor: Tensor, boxes: list[Box]) -> Tensor:
    return torch.cat([tensor[..., top : top + height, left : left + width] for top, left, height, width in boxes])


def _mask(cond: Cond, x: Tensor) -> Tensor | None:
    """Return the weights [1 or B, H, W] that a mask, an area or both give to a conditioning; None for none."""
    mask, area = cond.get("mask"), cond.get("area")
    if area is None:
        return mask
    height, width, top, left = area
    rows = _extent(height, top, x.shape[-2], feather=mask is None)
    columns = _extent(width, left, x.shape[-1], feather=mask is None)
    weights = (rows[:, None] * columns)[None].to(x)
    return weights if mask is None else mask * weights


def _extent(size: int, start: int, side: int, *, feather: bool) -> Tensor:
    """Return weights along one axis: 1 inside, fading towards edges that are not the picture's own, 0 outside."""
    size = min(size, side - start)
    weights = torch.ones(size)
    num_faded = min(_FEATHER, size // 4) if feather else 0
    ramp = torch.arange(1, num_faded + 1) / max(num_faded, 1)
    if start > 0:
        weights[:num_faded] *= ramp
    if start + size < side:
        weights[size - num_faded :] *= ramp.flip(0)
    return torch.nn.functional.pad(weights, (start, side - start - size))
