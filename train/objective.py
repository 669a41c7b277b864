"""What a control stream learns from: times, noise, TALA, masks and text of each sample, and the loss."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from eam_core.flow import add_noise, denoised_from_velocity, sample_sigmas, shift_sigma
from eam_core.mim import MaskConfig
from eam_core.model.autoencoder import Autoencoder, PatchAutoencoder
from eam_core.tala import substitute_lr, tala_time
from train.pairs import Pairs, gradient_l1, linear_picture, pixel_l1
from train.seeding import generator

SMALLEST_SIGMA = 1e-3  # below, the velocity of a substituted start is not defined


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss and the draws that it is an average over.

    Args:
        loss: "velocity": squared error of the velocity (SD3); "denoised": squared error of the denoised latents, which
            is the same weighted with sigma^2; "picture": L1 on pixels and on their gradients after the linear part of
            the embedded autoencoder's decoder.
        times: density of the time u: "logit_normal" (SD3) or "uniform".
        time_mean: mean of logit(u).
        time_std: standard deviation of logit(u).
        shift: moves times towards noise, see `eam_core.flow.shift_sigma`.
        sigma_max: times are scaled to end here; a sampler should not start above it.
        tala: time-aware latent augmentation (ConsisSR) over "sigma" or the unshifted time "u", or "none".
        tala_exponent: TALA starts from the LR latent with probability time ** exponent.
        null_text: probability of training without text, for classifier-free guidance.
        masked_steps: steps at the start of the run that drop LR tokens; the rest sees all of them (the paper's SFT).
        mask: which LR tokens are dropped in those steps.
    """

    loss: Literal["velocity", "denoised", "picture"] = "velocity"
    times: Literal["logit_normal", "uniform"] = "logit_normal"
    time_mean: float = 0.0
    time_std: float = 1.0
    shift: float = 3.0
    sigma_max: float = 1.0
    tala: Literal["none", "sigma", "u"] = "none"
    tala_exponent: float = 10.0
    null_text: float = 0.1
    masked_steps: int = 0
    mask: MaskConfig = dataclasses.field(default=MaskConfig(strategy="none"), metadata={"prefix": "mask_"})

    def __post_init__(self):
        if not self.time_std > 0:
            raise ValueError(f"expected time_std above 0, got {self.time_std}")
        if not self.shift > 0:
            raise ValueError(f"expected shift above 0, got {self.shift}; SD3 uses 3")
        if not 0 < self.sigma_max <= 1:
            raise ValueError(f"expected sigma_max in (0, 1], got {self.sigma_max}")
        if self.tala_exponent < 0:
            raise ValueError(f"expected tala_exponent of at least 0, got {self.tala_exponent}")
        if not 0 <= self.null_text <= 1:
            raise ValueError(f"expected null_text in [0, 1], got {self.null_text}")
        if self.masked_steps < 0:
            raise ValueError(f"expected masked_steps of at least 0, got {self.masked_steps}")
        if self.masked_steps and self.mask.strategy == "none":
            raise ValueError("expected a mask strategy with masked_steps above 0, got 'none'; use e.g. 'pms'")


@dataclasses.dataclass(frozen=True)
class Draws:
    """What is drawn for each sample of a batch.

    Attributes:
        sigma: noise levels [B].
        start: the clean end of the line [B, C, H, W].
        noise: its other end, same shape.
        x: the noisy latents between them.
        drop_text: [B], bool.
    """

    sigma: Tensor
    start: Tensor
    noise: Tensor
    x: Tensor
    drop_text: Tensor


def sample_noise(like: Tensor, seeds: Tensor) -> Tensor:
    """Draw standard normal noise of the shape of `like` [B, ...], each sample's from its own seed."""
    return torch.stack([torch.randn(like.shape[1:], generator=generator(s, "noise")) for s in seeds.tolist()]).to(like)


def draw(pairs: Pairs, seeds: Tensor, config: ObjectiveConfig) -> Draws:
    """Draw times, noise, starts and text drops, each sample from its own seed."""
    like = pairs.hr_latents

    def each(purpose: str, shape: tuple[int, ...] = ()) -> Tensor:
        numbers = [torch.rand(shape, generator=generator(seed, purpose)) for seed in seeds.tolist()]
        return torch.stack(numbers).to(like.device)

    if config.times == "uniform":
        u = each("time")
        sigma = shift_sigma(u, config.shift)
    else:
        drawn = [
            sample_sigmas(1, generator(seed, "time"), config.shift, config.time_mean, config.time_std)
            for seed in seeds.tolist()
        ]
        sigma = torch.cat(drawn).to(like.device)
    sigma = (sigma * config.sigma_max).clamp(min=SMALLEST_SIGMA)
    noise = sample_noise(like, seeds)
    start = pairs.hr_latents
    if config.tala != "none":
        time = tala_time(sigma, config.tala, config.shift)
        start = substitute_lr(pairs.hr_latents, pairs.lr_latents, time, config.tala_exponent, each("tala"))
    return Draws(sigma, start, noise, add_noise(start, noise, sigma), each("text") < config.null_text)


def losses(velocity: Tensor, draws: Draws, pairs: Pairs, loss: str, autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Compare a predicted velocity [B, C, H, W] with the photo; returns "loss" [B] and its parts."""
    velocity = velocity.float()
    if loss == "velocity":
        sigma = draws.sigma[:, None, None, None]
        # Of the plain line noise - HR; from a substituted start, the velocity that still leads to the HR latents.
        target = draws.noise - pairs.hr_latents + (1 - sigma) / sigma * (draws.start - pairs.hr_latents)
        return {"loss": (velocity - target).square().mean((1, 2, 3))}
    denoised = denoised_from_velocity(draws.x, velocity, draws.sigma)
    if loss == "denoised":
        return {"loss": (denoised - pairs.hr_latents).square().mean((1, 2, 3))}
    assert isinstance(autoencoder, PatchAutoencoder)
    picture, target = linear_picture(denoised, autoencoder), pairs.hr * 2 - 1
    pixel, gradient = pixel_l1(picture, target), gradient_l1(picture, target)
    return {"loss": pixel + gradient, "l1": pixel, "gradient_l1": gradient}
