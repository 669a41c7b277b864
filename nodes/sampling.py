"""What a run of EAM_TiledSampler needs besides its guider: noise levels, tiles in latents, progress, noise."""

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import ModelSamplingDiscreteFlow
from torch import Tensor

from ..eam_core.flow import schedule
from ..eam_core.model.autoencoder import DOWNSCALE
from ..eam_core.presets import fitting_overlap
from .guider import TiledGuider, TilingConfig
from .patcher import native_tile


class Progress:
    """Show steps and the tiles within them on the node, with previews."""

    def __init__(self, model: ModelPatcher, num_steps: int):
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.bar = comfy.utils.ProgressBar(num_steps)
        self.num_steps, self.step, self.num_tiles = num_steps, 0, 1

    def on_tile(self, done: int, num_tiles: int) -> None:
        """Note that `done` of a model call's tiles are finished."""
        self.num_tiles = num_tiles
        self._show(min(self.step * num_tiles + done, self.num_steps * num_tiles))

    def on_step(self, step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
        """Note the end of a step and show where it leads."""
        self.step = step + 1
        preview = self.previewer.decode_latent_to_preview_image("JPEG", denoised) if self.previewer else None
        self._show(self.step * self.num_tiles, preview)

    def _show(self, value: int, preview: Any = None) -> None:
        # Samplers with several calls per step must not run the bar backwards.
        value = max(value, self.bar.current)
        self.bar.update_absolute(value, self.num_steps * self.num_tiles, preview)


def sample(guider: TiledGuider, latent: dict[str, Any], sampler: Any, sigmas: Tensor, seed: int) -> dict[str, Any]:
    """Draw the noise that core draws for the seed and sample; return the LATENT with its new samples."""
    progress = Progress(guider.model_patcher, len(sigmas) - 1)
    guider.on_tile = progress.on_tile
    start = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    samples = guider.sample(
        comfy.sample.prepare_noise(start, seed, latent.get("batch_index")),
        start,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=progress.on_step,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": samples.to(comfy.model_management.intermediate_device())}


def make_tiling(model: ModelPatcher, tile: int, overlap: int, tile_batch: int) -> TilingConfig:
    """Turn the widgets' pixels into latents; 0 stands for what the model was trained for."""
    native = native_tile(model)
    tile = tile or native[0]
    overlap = overlap or fitting_overlap(tile, *native)
    return TilingConfig(tile=tile // DOWNSCALE, overlap=overlap // DOWNSCALE, tile_batch=tile_batch)


def make_sigmas(model: ModelPatcher, steps: int, sampler_name: str, scheduler: str, start_sigma: float) -> Tensor:
    """Lay out the noise levels of a run.

    A start below 1 is exact for sgm_uniform; another scheduler gives the tail of the longer run that comes next to it,
    as core's denoise setting does.

    Returns:
        Decreasing sigmas, [steps+1] for most schedulers.
    """
    core = comfy.samplers.KSampler(model, steps, model.load_device, sampler=sampler_name, scheduler=scheduler)
    if start_sigma >= 1:
        return core.sigmas
    sampling = model.get_model_object("model_sampling")
    exact = scheduler == "sgm_uniform" and isinstance(sampling, ModelSamplingDiscreteFlow)
    if exact and sampler_name not in core.DISCARD_PENULTIMATE_SIGMA_SAMPLERS:
        return schedule(steps, sampling.shift, start_sigma)
    low, high = steps, steps * 100

    def tail(num_steps: int) -> Tensor:
        return core.calculate_sigmas(num_steps)[-(steps + 1) :]

    # The more steps in all, the lower its last few begin.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if float(tail(middle)[0]) > start_sigma else (low, middle)
    return min(tail(low), tail(high), key=lambda sigmas: abs(float(sigmas[0]) - start_sigma))
