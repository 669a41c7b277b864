"""Time-aware latent augmentation (ConsisSR): early in the sampling, train from the LR latent instead of the HR one."""

from typing import Literal, get_args

import torch
from torch import Tensor

from .flow import shift_sigma

TalaTime = Literal["sigma", "u"]


def tala_time(sigma: Tensor, variable: TalaTime, shift: float) -> Tensor:
    """Return the time that decides how likely TALA takes the LR latent.

    Args:
        sigma: [B] in [0, 1].
        variable: "sigma", the noise level itself; "u", the unshifted time that sigma was made from.
        shift: the training density's, see `flow.shift_sigma`.

    Returns:
        Times [B] in [0, 1].

    Raises:
        ValueError: variable is neither.
    """
    if variable not in get_args(TalaTime):
        raise ValueError(f"expected the time variable to be one of {get_args(TalaTime)}, got {variable!r}")
    return sigma if variable == "sigma" else shift_sigma(sigma, 1 / shift)


def substitute_lr(hr_latents: Tensor, lr_latents: Tensor, time: Tensor, exponent: float, draws: Tensor) -> Tensor:
    """Replace HR latents by LR latents with probability p(time) = time ** exponent, per sample (ConsisSR's TALA).

    The target stays the HR latent: with x = (1 - sigma) * start + sigma * noise the velocity to learn is
    v* = (x - hr_latents) / sigma (`flow.velocity_from_denoised`), so that the implied denoised latent is still the HR
    one. It makes starting the sampler from the LR latent consistent with training. With SD3's training density
    (logit-normal(0, 1), shift 3) and exponent 10, 13.8 % of all samples are replaced when time is sigma, 2.9 % when it
    is u.

    Args:
        hr_latents: [B, C, H, W].
        lr_latents: same shape.
        time: [B] in [0, 1], see `tala_time`.
        exponent: 10 in ConsisSR; 0 always takes the LR latent.
        draws: uniform numbers [B] in [0, 1), one from each sample's own generator.

    Returns:
        The latents to add noise to, [B, C, H, W].

    Raises:
        ValueError: shapes differ or the exponent is negative.
    """
    if hr_latents.shape != lr_latents.shape:
        expected, got = list(hr_latents.shape), list(lr_latents.shape)
        raise ValueError(f"expected LR latents of the HR latents' shape {expected}, got {got}")
    if not time.shape == draws.shape == hr_latents.shape[:1]:
        got = f"{list(time.shape)} and {list(draws.shape)}"
        raise ValueError(f"expected one time and one draw per sample, {[len(hr_latents)]}, got {got}")
    if exponent < 0:
        raise ValueError(f"expected an exponent of at least 0, got {exponent}")
    take_lr = draws < time**exponent
    return torch.where(take_lr[:, None, None, None], lr_latents, hr_latents)
