"""Time-aware latent augmentation (ConsisSR): early in the sampling, train from the LR latent instead of the HR one."""

import torch
from torch import Tensor


def substitute_lr(
    hr_latents: Tensor, lr_latents: Tensor, sigma: Tensor, exponent: float, generator: torch.Generator | None = None
) -> Tensor:
    """Replace HR latents by LR latents with probability p(sigma) = sigma ** exponent, drawn per sample.

    The target stays the HR latent: with x = (1 - sigma) * start + sigma * noise the velocity to learn is
    (x - hr_latents) / sigma, so that the implied denoised latent is still the HR one (ConsisSR's TALA in rectified-flow
    form). It makes starting the sampler from the LR latent consistent with training.

    Args:
        hr_latents: [B, C, H, W].
        lr_latents: same shape.
        sigma: [B] in [0, 1].
        exponent: 10 in ConsisSR; 0 always takes the LR latent.
        generator: source of the draw.

    Returns:
        The latents to add noise to, [B, C, H, W].

    Raises:
        ValueError: shapes differ or the exponent is negative.
    """
    if hr_latents.shape != lr_latents.shape:
        expected, got = list(hr_latents.shape), list(lr_latents.shape)
        raise ValueError(f"expected LR latents of the HR latents' shape {expected}, got {got}")
    if exponent < 0:
        raise ValueError(f"expected an exponent of at least 0, got {exponent}")
    draw = torch.rand(sigma.shape, generator=generator, device=sigma.device)
    take_lr = draw < sigma**exponent
    return torch.where(take_lr[:, None, None, None], lr_latents, hr_latents)
