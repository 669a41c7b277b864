"""What a run of EAM_TiledSampler needs besides its guider: noise levels, tiles in latents, noise."""

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import ModelSamplingDiscreteFlow
from torch import Tensor

from ..eam_core.flow import schedule
from ..eam_core.model.autoencoder import DOWNSCALE
from ..eam_core.presets import chosen_tiles
from .guider import TiledGuider, TilingConfig
from .patcher import native_tile
from .progress import Progress

STEPLESS = ("dpm_fast", "dpm_adaptive")
"""Samplers that choose their own noise levels, and never call at the last of the schedule's."""


def sample(guider: TiledGuider, latent: dict[str, Any], sampler: Any, sigmas: Tensor, seed: int) -> dict[str, Any]:
    """Draw the noise that core draws for the seed and sample; return the LATENT with its new samples."""
    start = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    latent_format = guider.model_patcher.get_model_object("latent_format")
    guider.progress = progress = Progress(guider.model_patcher, latent_format.process_in(start[:1]))
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
    progress.finish()
    return {**latent, "samples": samples.to(comfy.model_management.intermediate_device())}


def make_tiling(
    model: ModelPatcher, tile: int, overlap: int, tile_batch: int, blend_every_step: bool = False
) -> TilingConfig:
    """Turn the widgets' pixels into latents; 0 stands for what the model was trained for."""
    tile, overlap = chosen_tiles(tile, overlap, native_tile(model))
    sides = {"tile": tile // DOWNSCALE, "overlap": overlap // DOWNSCALE}
    return TilingConfig(**sides, tile_batch=tile_batch, blend_every_step=blend_every_step)


def make_cfg_window(model: ModelPatcher, start_percent: float, end_percent: float) -> tuple[float, float]:
    """Turn percents of the sampling into the highest and lowest sigma with guidance.

    Raises:
        ValueError: nothing lies between them.
    """
    if start_percent >= end_percent:
        raise ValueError(
            f"expected cfg_start_percent below cfg_end_percent, got {start_percent:g} and {end_percent:g}; "
            "0 and 1 guide in every step, cfg 1 in none"
        )
    sampling = model.get_model_object("model_sampling")
    return sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent)


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
