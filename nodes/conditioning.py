"""Pictures into conditioning: enlarge, encode, and put the LR latents where core batches and crops them."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import comfy.conds
import comfy.sd
from torch import Tensor

from ..eam_core.errors import CheckpointError
from ..eam_core.images import check_size, resize
from ..eam_core.model.autoencoder import DOWNSCALE
from ..eam_core.pipeline import autoencoder_tiles
from ..eam_core.presets import Spec
from ..eam_core.sd3 import NUM_T5_TOKENS
from ..eam_core.start import latent_aligned, upsample
from ..eam_core.tiling import tiled_map
from .embedded import EmbeddedVAE
from .hooks import LR_COND
from .patcher import Control
from .types import to_host
from .weight_patches import changed_vae, encode_posterior

Conditioning = list[tuple[Tensor, dict[str, Any]]]


def enlarge(image: Tensor, scale: float, spec: Spec) -> Tensor:
    """Enlarge [B, 3, H, W] with a model's bicubic kernel to the nearest size that the autoencoder can encode.

    Raises:
        ImageError: the image or its result is too small or too large.
    """
    height, width = image.shape[-2:]
    check_size(height, width, scale, "the image")
    kernel = resize if spec.canvas == "resized" else upsample
    return kernel(image, (latent_aligned(height, scale), latent_aligned(width, scale)))


def encode_start(vae: comfy.sd.VAE, image: Tensor, control: Control) -> tuple[Tensor, Tensor | None]:
    """Encode a degraded image [B, 3, H, W] as a control wants it.

    Returns:
        Raw latents and, for a control that starts from them, their standard deviation.

    Raises:
        CheckpointError: the VAE is not the kind that the control was trained with.
    """
    channels = control.params.in_channels
    if control.spec.start == "noise":
        return encode(vae, image, channels), None
    changed = changed_vae(vae, control.beside.encoder, control.source)
    mean, spread = encode(changed, image, channels, lambda pixels: encode_posterior(changed, pixels)).chunk(2, dim=1)
    return mean, spread


def encode(
    vae: comfy.sd.VAE, image: Tensor, channels: int, encode_tile: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Encode a degraded image [B, 3, H, W] to raw latents, in tiles where it is large.

    Args:
        vae: the VAE.
        image: the image.
        channels: of the latents that the control was trained with.
        encode_tile: what encodes a part of it [B, h, w, 3]; None for what the VAE has for degraded images.

    Raises:
        CheckpointError: the VAE is not the kind that the control was trained with.
    """
    if vae.latent_channels != channels:
        raise CheckpointError(
            f"expected a VAE with {channels} latent channels like SD3's, got {vae.latent_channels}; "
            "use the VAE of the checkpoint"
        )
    encode_tile = encode_tile or (vae.encode_degraded if isinstance(vae, EmbeddedVAE) else vae.encode)
    tile, overlap = autoencoder_tiles(vae, *image.shape[-2:], align=DOWNSCALE)
    return tiled_map(
        lambda tiles: encode_tile(to_host(tiles)),
        image,
        tile=tile,
        overlap=overlap,
        scale=Fraction(1, DOWNSCALE),
    )


def control_prompt(control: Control, clip: comfy.sd.CLIP | None) -> Conditioning:
    """Return the embedding of the one text that a control was trained with.

    Raises:
        CheckpointError: it was trained with captions, or neither embedding nor text encoders are there.
    """
    text = control.spec.fixed_prompt
    if not text:
        raise CheckpointError(
            f"expected a control with a prompt of its own, but {control.source} reads yours; use CLIPTextEncode"
        )
    if control.beside.text is not None:
        context, pooled = control.beside.text
        return [(context, {"pooled_output": pooled})]
    if clip is None:
        raise CheckpointError(f"{control.beside.missing_text}, or connect SD3's text encoders to clip")
    clip = clip.clone()
    clip.set_tokenizer_option("t5xxl_min_length", NUM_T5_TOKENS)  # as in training; core's own padding is shorter
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def with_lr(conditioning: Conditioning, lr: Tensor) -> Conditioning:
    """Return the conditioning with the LR latents in every entry; core batches and crops them."""
    cond = comfy.conds.CONDNoiseShape(lr)
    return [
        (context, {**extra, "model_conds": {**extra.get("model_conds", {}), LR_COND: cond}})
        for context, extra in conditioning
    ]
