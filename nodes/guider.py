"""The guider behind EAM_TiledSampler: core's prediction tile by tile, blended, and pulled towards the LR latents."""

import logging
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy.utils import repeat_to_batch_size
from comfy_api.torch_helpers.torch_compile import TORCH_COMPILE_KWARGS
from torch import Tensor

from ..eam_core.guidance import cfg_scale_at, restoration_guidance
from ..eam_core.lr_memory import LRMemories
from ..eam_core.tile_batch import CudaMeter, TileBatch, most_auto
from ..eam_core.tile_plan import overlaps_in
from ..eam_core.tile_run import Predict, TileRun
from ..eam_core.tiling import Box, TileGrid
from .full_precision import computes_in, in_float32
from .hooks import LR_COND
from .progress import Progress
from .tile_conditioning import Cond, TileConditioning, TilePrompts
from .tile_cuts import UNCUT, conds_for_tiles, whole_conds


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """Tiles of the latents; `tile_batch` of them go through the model at once, 0 for as many as fit and pay.

    They overlap in the last steps only, unless `blend_every_step`; see `tile_plan`.
    """

    tile: int
    overlap: int
    tile_batch: int
    blend_every_step: bool = False


def _tell(text: str) -> None:
    logging.warning(f"EAM: {text}")


class HostMeter(CudaMeter):
    """Core's own idea of what is free."""

    def free(self) -> int:
        """Return bytes, see `MemoryMeter`."""
        return int(comfy.model_management.get_free_memory(self.device))


class TiledGuider(comfy.samplers.CFGGuider):
    """CFGGuider that predicts the denoised latents tile by tile."""

    progress: Progress | None = None
    """Is told of each tile."""

    def __init__(
        self,
        model: ModelPatcher,
        tiling: TilingConfig,
        *,
        cfg_start: float,
        cfg_end: float,
        fidelity: float,
        cfg_window: tuple[float, float] = (1.0, 0.0),
    ):
        """Keep the settings.

        Args:
            model: MODEL to sample with.
            tiling: sizes in latents.
            cfg_start: CFG scale at sigma 1.
            cfg_end: CFG scale at sigma 0.
            fidelity: strength of restoration guidance in [0, 1].
            cfg_window: highest and lowest sigma with guidance; outside only the positive prompt runs.
        """
        super().__init__(model)
        self.cfg_window = cfg_window
        self.tiling, self.cfg_start, self.cfg_end, self.fidelity = tiling, cfg_start, cfg_end, fidelity
        self.tile_prompts = TilePrompts([], 0.0)

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
        self.memories = LRMemories()
        self.run = self._new_run(noise)
        try:
            return super().outer_sample(noise, *args, **kwargs)
        finally:
            self.memories.forget()

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Return the denoised latents for x [B, C, H, W] at sigma `timestep` [B]."""
        options = model_options or {}
        sigma = float(timestep[0])
        self.cfg = cfg_scale_at(sigma, self.cfg_start, self.cfg_end, self.cfg_window)
        size = x.shape[-2:]

        def cut(name: str, boxes: list[Box]) -> list[Cond]:
            cutter = whole_conds if tuple(size) == boxes[0][2:] else conds_for_tiles
            return cutter(self.conds[name], boxes, x, self.memories)

        def predict(tiles: Tensor, boxes: list[Box]) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            negative, positive = cut("negative", boxes), self.tile_prompts.positive(cut, boxes, size)
            levels = timestep.repeat(len(boxes))
            return comfy.samplers.sampling_function(
                self.inner_model, tiles, levels, negative, positive, self.cfg, model_options=options, seed=seed
            )

        grouped = self.tile_prompts.in_groups(predict, self.conds, size)
        sigmas = options["transformer_options"]["sample_sigmas"]  # of this run; a control may have chosen others

        def watch(predict: Predict, grid: TileGrid) -> Predict:
            return self.progress.watching(predict, x, grid, len(sigmas) - 1) if self.progress else predict

        def where() -> str:
            return f"step {max(1, int((sigmas >= 0.9999 * sigma).sum()))} of {len(sigmas) - 1} (sigma {sigma:.3f})"

        # Samplers may call between two levels, which belongs to the step of the one above.
        step = max(0, int((sigmas >= 0.9999 * sigma).sum()) - 1)
        last_sigma = float(sigmas[-2])
        self.memories.keeps = sigma > last_sigma
        blend = overlaps_in(sigma, last_sigma)
        denoised = self.run(grouped, x, where, step=step, blend=blend, watch=watch)
        return self._guide(denoised, sigma, sigma_start=float(sigmas[0]))

    def _new_run(self, noise: Tensor) -> TileRun:
        device, base = torch.device(self.model_patcher.load_device), self.model_patcher.model
        meter = HostMeter(device) if device.type == "cuda" else None

        def release() -> bool:
            had = self.memories.forget()
            comfy.model_management.soft_empty_cache()
            return had

        fixed = TORCH_COMPILE_KWARGS in self.model_patcher.model_options
        grid = self._grid(*noise.shape[-2:])
        most = 1 if fixed else most_auto(device, len(noise) * grid.tile_height * grid.tile_width)
        tile_batch = TileBatch(self.tiling.tile_batch, most_auto=most, meter=meter, release=release, tell=_tell)
        precisely = None if computes_in(base) == torch.float32 else lambda: in_float32(base)
        return TileRun(
            grid,
            tile_batch,
            precisely,
            # Neighbours that follow different prompts disagree, which only the blend of every step evens out.
            blend_every_step=self.tiling.blend_every_step or bool(self.tile_prompts.places),
            fixed=fixed,
            may_cut=lambda: not any(key in cond for key in UNCUT for conds in self.conds.values() for cond in conds),
        )

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
        at_once = batch * min(max(1, self.tiling.tile_batch), len(grid.boxes))
        return executor(model, [at_once, channels, grid.tile_height, grid.tile_width], *args, **kwargs)
