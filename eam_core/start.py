"""What a model's settings say about the two ends of a restoration: canvas, scale of latents, first and last picture.

A canvas is the enlarged picture at a size that autoencoder and transformer take. It is "resized" to the nearest such
size, or enlarged exactly and "padded" at the right and the bottom.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import resize
from .model.autoencoder import DOWNSCALE, scale_latents
from .presets import Spec
from .restore_config import RestoreConfig
from .sampling import initial_latents

PAD_TO = 2 * DOWNSCALE  # sides of a padded canvas: whole patches of the transformer


def latent_aligned(side: int, scale: float) -> int:
    """Return the side in pixels at which a picture is restored: side * scale, rounded to a whole latent."""
    return round(side * scale / DOWNSCALE) * DOWNSCALE


def result_size(image: Tensor, scale: float) -> tuple[int, int]:
    """Return height and width of the restored image."""
    height, width = image.shape[-2:]
    return round(height * scale), round(width * scale)


def upsample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge images with torch's bicubic kernel (a = -0.75) and no antialiasing: sharper than `images.resize`."""
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def make_canvas(image: Tensor, scale: float, spec: Spec) -> Tensor:
    """Enlarge images [B, 3, H, W] in [0, 1] to the size at which they are restored."""
    if spec.canvas == "resized":
        height, width = image.shape[-2:]
        return resize(image, (latent_aligned(height, scale), latent_aligned(width, scale)))
    enlarged = upsample(image, result_size(image, scale))
    height, width = enlarged.shape[-2:]
    return F.pad(enlarged, (0, -width % PAD_TO, 0, -height % PAD_TO), mode="replicate")


def crop_canvas(restored: Tensor, canvas: Tensor, image: Tensor, scale: float, spec: Spec) -> tuple[Tensor, Tensor]:
    """Take padding off a restored canvas.

    Returns:
        The restored images, and the enlarged input at their size, as a reference for colours.
    """
    if spec.canvas == "resized":
        return restored, canvas
    height, width = result_size(image, scale)
    return restored[..., :height, :width], resize(image, (height, width))


def encode_posterior(autoencoder: Any, images: Tensor) -> Tensor:
    """Return mean and standard deviation of the raw latents of images in [-1, 1], joined: [B, 2C, H/8, W/8]."""
    return torch.cat(autoencoder.encode_posterior(images), dim=1)


def scale_posterior(posterior: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Split `encode_posterior`'s result into mean and standard deviation as the network takes latents."""
    mean, std = posterior.chunk(2, dim=1)
    return scale_latents(mean, spec.latent_shift), scale_latents(std, 0.0)


def first_latents(lr_latents: Tensor, spread: Tensor | None, noise: Tensor, config: RestoreConfig) -> Tensor:
    """Return where sampling starts, shape of all.

    Args:
        lr_latents: of the canvas, as the network takes them.
        spread: their standard deviation, for a model that starts from them; None for one that starts from noise.
        noise: as from `sampling.make_noise`.
        config: says how much noise there is.
    """
    if spread is None:
        return initial_latents(noise, lr_latents, config.sigma_start)
    return lr_latents + config.encoder_noise * spread * noise
