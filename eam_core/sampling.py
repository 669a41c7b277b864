"""Samplers: plain functions that follow a schedule with any `denoise(x, sigma) -> denoised`."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .flow import add_noise

Denoise = Callable[[Tensor, float], Tensor]
StepCallback = Callable[[int, int, Tensor, Tensor], None]
"""Called as (step from 0, num_steps, x before the step, denoised); may raise to stop the run."""
Sampler = Callable[[Denoise, Tensor, Tensor, StepCallback | None], Tensor]


def make_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw the starting noise on the CPU, the numbers ComfyUI draws for the same seed and shape.

    Args:
        shape: of the latents [B, C, H, W].
        seed: in [0, 2^64).

    Returns:
        Standard normal noise, float32, on the CPU.
    """
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def initial_latents(noise: Tensor, lr_latents: Tensor, sigma_start: float) -> Tensor:
    """Start from the LR latents: (1-sigma_start)*z_LR + sigma_start*noise (ConsisSR, TALA's consistent start).

    Args:
        noise: as from `make_noise`, [B, C, H, W].
        lr_latents: latents of the LR image, shape of noise.
        sigma_start: in [0, 1], the schedule's first sigma; 1 gives pure noise.

    Returns:
        Latents to sample from, shape of noise.
    """
    return add_noise(lr_latents, noise, sigma_start)


def sample_euler(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: StepCallback | None = None) -> Tensor:
    """Sample with Euler steps (EDM, Algorithm 2 without churn; ComfyUI's "euler").

    Args:
        denoise: gives the clean latents for noisy latents and their sigma, a number.
        x: latents at sigmas[0], [B, ...].
        sigmas: decreasing, [num_steps+1], as from `flow.schedule`.
        callback: see `StepCallback`.

    Returns:
        Latents at sigmas[-1]; with a last sigma of 0 exactly the last denoised.

    Raises:
        ValueError: sigmas are not a decreasing list of at least two.
    """
    levels = _levels(sigmas)
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigma)
        if callback is not None:
            callback(step, len(levels) - 1, x, denoised)
        x = _step(x, denoised, sigma_next / sigma)
    return x


def sample_dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: StepCallback | None = None) -> Tensor:
    """Sample with DPM-Solver++(2M) in t = -log(sigma), as ComfyUI's "dpmpp_2m" does on flow models too.

    Each step is Euler's step towards a denoised extrapolated in t from the last two calls (Lu et al. 2022,
    Algorithm 2); the first step and a step to 0 are Euler's own. One model call per step.

    Args:
        denoise: gives the clean latents for noisy latents and their sigma, a number.
        x: latents at sigmas[0], [B, ...].
        sigmas: decreasing, [num_steps+1], as from `flow.schedule`.
        callback: see `StepCallback`.

    Returns:
        Latents at sigmas[-1]; with a last sigma of 0 exactly the last denoised.

    Raises:
        ValueError: sigmas are not a decreasing list of at least two.
    """
    levels = _levels(sigmas)
    previous: Tensor | None = None
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigma)
        if callback is not None:
            callback(step, len(levels) - 1, x, denoised)
        target = denoised
        if previous is not None and sigma_next > 0:
            gain = math.log(sigma / sigma_next) / (2 * math.log(levels[step - 1] / sigma))
            target = denoised + gain * (denoised - previous)
        x = _step(x, target, sigma_next / sigma)
        previous = denoised
    return x


SAMPLERS: dict[str, Sampler] = {"euler": sample_euler, "dpmpp_2m": sample_dpmpp_2m}


def get_sampler(name: str) -> Sampler:
    """Find a sampler by name; raise ValueError with the choices when there is none."""
    if name not in SAMPLERS:
        raise ValueError(f"expected a sampler of {sorted(SAMPLERS)}, got {name!r}; choose one of them")
    return SAMPLERS[name]


def _step(x: Tensor, target: Tensor, ratio: float) -> Tensor:
    """Move x along the straight line to target until sigma has shrunk by ratio."""
    return ratio * x + (1 - ratio) * target


def _levels(sigmas: Tensor) -> list[float]:
    """Read the schedule once as numbers, so that no step waits for the device."""
    levels = [float(sigma) for sigma in sigmas.tolist()]
    if len(levels) < 2 or levels[-1] < 0 or not all(high > low for high, low in pairwise(levels)):
        raise ValueError(f"expected two or more decreasing sigmas >= 0, got {levels}; see flow.schedule")
    return levels
