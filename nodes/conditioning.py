"""Pictures into conditioning: enlarge, encode, and put the LR latents where core batches and crops them."""

from fractions import Fraction
from typing import Any

import comfy.conds
import comfy.sd
from torch import Tensor

from ..eam_core.errors import CheckpointError
from ..eam_core.images import check_size, resize
from ..eam_core.model.autoencoder import DOWNSCALE
from ..eam_core.pipeline import AUTOENCODER_OVERLAP, AUTOENCODER_TILE, latent_aligned
from ..eam_core.tiling import tiled_map
from .embedded import EmbeddedVAE
from .hooks import LR_COND
from .types import to_host

Conditioning = list[tuple[Tensor, dict[str, Any]]]


def enlarge(image: Tensor, scale: float) -> Tensor:
    """Enlarge [B, 3, H, W] with a bicubic kernel to the nearest size that the autoencoder can encode.

    Raises:
        ImageError: the image or its result is too small or too large.
    """
    height, width = image.shape[-2:]
    check_size(height, width, scale, "the image")
    return resize(image, (latent_aligned(height, scale), latent_aligned(width, scale)))


def encode(vae: comfy.sd.VAE, image: Tensor, channels: int) -> Tensor:
    """Encode a degraded image [B, 3, H, W] to raw latents, in tiles where it is large.

    Raises:
        CheckpointError: the VAE is not the kind that the control was trained with.
    """
    if vae.latent_channels != channels:
        raise CheckpointError(
            f"expected a VAE with {channels} latent channels like SD3's, got {vae.latent_channels}; "
            "use the VAE of the checkpoint"
        )
    encode_tile = vae.encode_degraded if isinstance(vae, EmbeddedVAE) else vae.encode
    return tiled_map(
        lambda tiles: encode_tile(to_host(tiles)),
        image,
        tile=AUTOENCODER_TILE,
        overlap=AUTOENCODER_OVERLAP,
        scale=Fraction(1, DOWNSCALE),
    )


def with_lr(conditioning: Conditioning, lr: Tensor) -> Conditioning:
    """Return the conditioning with the LR latents in every entry; core batches and crops them."""
    cond = comfy.conds.CONDNoiseShape(lr)
    return [
        (context, {**extra, "model_conds": {**extra.get("model_conds", {}), LR_COND: cond}})
        for context, extra in conditioning
    ]
