"""Training pairs of a photo and its degraded copy, and the loss that compares a restoration with the photo."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from eam_core.degradation import PRESETS, degrade
from eam_core.images import resize
from eam_core.model.autoencoder import PatchAutoencoder, scale_latents, unscale_latents
from train.photos import PhotoCrops


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How training pairs are made.

    Args:
        crop_sizes: in pixels; each step draws one, and the batch shrinks so that its tokens stay as many.
        scale: reduction factor of the LR pictures.
        presets, preset_weights: degradations and how often each is drawn.
    """

    crop_sizes: tuple[int, ...] = (128, 192)
    scale: int = 4
    presets: tuple[str, ...] = ("plain", "light", "stock")
    preset_weights: tuple[float, ...] = (0.4, 0.45, 0.15)

    def __post_init__(self):
        if len(self.presets) != len(self.preset_weights):
            raise ValueError(f"expected one weight per preset {self.presets}, got {self.preset_weights}")
        for preset in self.presets:
            if preset not in PRESETS:
                raise ValueError(f"expected presets among {sorted(PRESETS)}, got {preset!r}")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A batch: HR pictures [B, 3, H, W] in [0, 1] and the latents of both sides, as the network takes them."""

    hr: Tensor
    hr_latents: Tensor
    lr_latents: Tensor


@torch.no_grad()
def make_pairs(hr: Tensor, preset: str, scale: int, autoencoder: PatchAutoencoder, generator: torch.Generator) -> Pairs:
    """Degrade HR pictures, enlarge the result to their size again and encode both."""
    lr = resize(degrade(hr, scale, PRESETS[preset], generator), (hr.shape[-2], hr.shape[-1]))
    hr_latents, lr_latents = (scale_latents(autoencoder.encode(images * 2 - 1)) for images in (hr, lr))
    return Pairs(hr, hr_latents, lr_latents)


def draw_pairs(
    crops: PhotoCrops, config: PairConfig, batch_size: int, autoencoder: PatchAutoencoder, generator: torch.Generator
) -> Pairs:
    """Draw a crop size, a degradation and a batch; `batch_size` counts crops of the smallest size."""
    size = config.crop_sizes[int(torch.randint(len(config.crop_sizes), (), generator=generator))]
    batch_size = max(1, batch_size * min(config.crop_sizes) ** 2 // size**2)
    weights = torch.tensor(config.preset_weights)
    preset = config.presets[int(torch.multinomial(weights, 1, generator=generator))]
    return make_pairs(crops.sample(batch_size, size, generator), preset, config.scale, autoencoder, generator)


def gradient_l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical pixel differences of two batches [B, 3, H, W]."""
    difference = output - target
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def psnr(output: Tensor, target: Tensor) -> float:
    """PSNR in dB of two batches in [-1, 1], clamped."""
    return (10 * torch.log10(4 / F.mse_loss(output.clamp(-1, 1), target))).item()


def linear_picture(latents: Tensor, autoencoder: PatchAutoencoder) -> Tensor:
    """Decode latents with the linear part of the decoder: pictures [B, 3, 8H, 8W], cheap enough for every step."""
    return autoencoder.decoder.synthesize(unscale_latents(latents))


def picture_losses(denoised: Tensor, pairs: Pairs, autoencoder: PatchAutoencoder) -> dict[str, Tensor]:
    """Compare denoised latents with the photo after linear decoding: L1 on pixels plus L1 on their gradients."""
    picture, target = linear_picture(denoised, autoencoder), pairs.hr * 2 - 1
    pixel, gradient = F.l1_loss(picture, target), gradient_l1(picture, target)
    return {"loss": pixel + gradient, "l1": pixel.detach(), "gradient_l1": gradient.detach()}
