"""Rectified flow: the line between picture and noise, its velocity, and the noise levels of training and sampling."""

from typing import TypeVar

import torch
from torch import Tensor

SigmaT = TypeVar("SigmaT", float, Tensor)

SCHEDULERS = ("sgm_uniform", "normal")
_NUM_TRAIN_TIMESTEPS = 1000


def shift_sigma(u: SigmaT, shift: float) -> SigmaT:
    """Move uniform time towards high noise: sigma = shift*u / (1 + (shift-1)*u) (SD3 Eq. 23).

    The inverse is the same map with 1/shift.

    Args:
        u: uniform time in [0, 1].
        shift: above 0; 1 leaves u as it is, SD3 uses 3.

    Returns:
        Sigma in [0, 1], of the kind and shape of u.

    Raises:
        ValueError: shift is not positive.
    """
    if shift <= 0:
        raise ValueError(f"expected shift > 0, got {shift}; SD3 models use 3.0")
    return shift * u / (1 + (shift - 1) * u)


def timestep(sigma: SigmaT) -> SigmaT:
    """Turn sigma in [0, 1] into the time the network was trained to read, in [0, 1000]."""
    return sigma * _NUM_TRAIN_TIMESTEPS


def add_noise(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """Place latents on the line to noise: x = (1-sigma)*x0 + sigma*noise.

    Args:
        x0: clean latents [B, ...].
        noise: standard normal noise, shape of x0.
        sigma: in [0, 1]; a number, or one per sample as [B].

    Returns:
        Noisy latents, shape of x0.
    """
    sigma = _per_sample(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity dx/dsigma of the line, noise - x0, that the network learns."""
    return noise - x0


def denoised_from_velocity(x: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """Return the clean latents that a velocity implies: x - sigma*velocity (sigma a number or [B])."""
    return x - _per_sample(sigma, x) * velocity


def velocity_from_denoised(x: Tensor, denoised: Tensor, sigma: float | Tensor) -> Tensor:
    """Return the velocity that clean latents imply: (x - denoised)/sigma (sigma a number or [B], above 0)."""
    return (x - denoised) / _per_sample(sigma, x)


def sample_sigmas(
    n: int, generator: torch.Generator | None, shift: float, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Draw noise levels for training from the shifted logit-normal density (SD3 section 3.1).

    Args:
        n: how many.
        generator: source of randomness, None for torch's global one; the result lies on its device.
        shift: as in `shift_sigma`.
        mean: mean of logit(u).
        std: standard deviation of logit(u).

    Returns:
        Sigmas [n], float32, in (0, 1).
    """
    device = generator.device if generator is not None else None
    u = torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=device))
    return shift_sigma(u, shift)


def schedule(
    num_steps: int,
    shift: float,
    sigma_start: float = 1.0,
    device: torch.device | str | None = None,
    *,
    scheduler: str = "sgm_uniform",
) -> Tensor:
    """Lay out the noise levels of a run, equal to ComfyUI's scheduler of the same name on a flow model.

    num_steps+1 times u are spaced evenly from inverse_shift(sigma_start) down to u_end, shifted, and the last sigma is
    set to 0. The scheduler "normal", SD3.5's own, spaces num_steps times over the same range and adds the 0. u_end is
    ComfyUI's: its smallest training sigma, shift_sigma(1/1000), read once more as an unshifted time (0.003 at shift 3).
    A start below 1 equals the tail of a longer full schedule that passes through sigma_start, as ComfyUI's denoise
    setting cuts it.

    Args:
        num_steps: model calls, at least 1.
        shift: as in `shift_sigma`.
        sigma_start: first sigma, at most 1 and above the level of u_end (0.009 at shift 3).
        device: where the result lies.
        scheduler: out of `SCHEDULERS`.

    Returns:
        Decreasing sigmas [num_steps+1], float32, from sigma_start to 0.

    Raises:
        ValueError: num_steps or sigma_start is out of range, or the scheduler is unknown.
    """
    if scheduler not in SCHEDULERS:
        raise ValueError(f"expected a scheduler out of {', '.join(SCHEDULERS)}, got {scheduler!r}")
    if num_steps < 1:
        raise ValueError(f"expected num_steps of at least 1, got {num_steps}; ask for one step or more")
    u_end = shift_sigma(1 / _NUM_TRAIN_TIMESTEPS, shift)
    sigma_end = shift_sigma(u_end, shift)
    if not sigma_end < sigma_start <= 1:
        raise ValueError(
            f"expected sigma_start in ({sigma_end:.4g}, 1], got {sigma_start}; 1 starts from pure noise, "
            "lower values from the LR latents"
        )
    u_start = shift_sigma(sigma_start, 1 / shift)
    spread = num_steps + 1 if scheduler == "sgm_uniform" else num_steps
    sigmas = shift_sigma(torch.linspace(u_start, u_end, spread, dtype=torch.float64), shift)
    sigmas = torch.cat([sigmas[:num_steps], torch.zeros(1, dtype=torch.float64)])
    return sigmas.to(device=device, dtype=torch.float32)


def _per_sample(sigma: float | Tensor, like: Tensor) -> float | Tensor:
    """Give a [B] sigma the trailing axes it needs to scale `like` sample by sample."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1:
        return sigma.to(like).view(-1, *[1] * (like.ndim - 1))
    return sigma
