"""The embedded default as ComfyUI knows a checkpoint: MODEL, CLIP and VAE around this project's small weights."""

import logging
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from ..eam_core.checkpoint import build_autoencoder, mmdit_params
from ..eam_core.model.autoencoder import DOWNSCALE, SD3_SCALE, SD3_SHIFT, PatchAutoencoder
from ..eam_core.presets import EMBEDDED
from ..eam_core.weight_files import read_weights
from .patcher import managed, set_native_tile


def load_embedded() -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Load the embedded base, a text encoder that knows no text, and the embedded autoencoder.

    Raises:
        CheckpointError: a weight file is missing or damaged.
    """
    assert EMBEDDED.base and EMBEDDED.autoencoder
    state = read_weights(EMBEDDED.base)
    params = mmdit_params(state)
    autoencoder = build_autoencoder(read_weights(EMBEDDED.autoencoder), EMBEDDED.autoencoder.name)

    model = comfy.sd.load_diffusion_model_state_dict(state)
    model.model.model_sampling.set_parameters(shift=EMBEDDED.shift)
    model.model.latent_format = EmbeddedLatentFormat(autoencoder)
    set_native_tile(model, EMBEDDED)

    target = ClipTarget(NullTokenizer, NullTextEncoder)
    shape = (1, EMBEDDED.num_null_tokens, params.context_size)
    target.params = {"shape": shape, "pooled_size": params.pooled_size}
    return model, comfy.sd.CLIP(target), EmbeddedVAE(autoencoder)


class EmbeddedLatentFormat(comfy.latent_formats.SD3):
    """SD3's scaling, with the colours of these latents for previews."""

    def __init__(self, autoencoder: PatchAutoencoder):
        super().__init__()
        linear = autoencoder.decoder.linear
        # What a latent adds to the mean colour of its patch.
        raw_to_rgb = linear.weight.detach().float().sum(dim=(2, 3)) / DOWNSCALE**2
        self.latent_rgb_factors = (raw_to_rgb / SD3_SCALE).tolist()
        self.latent_rgb_factors_bias = (linear.bias.detach().float() + SD3_SHIFT * raw_to_rgb.sum(dim=0)).tolist()
        self.taesd_decoder_name = None


class EmbeddedVAE(comfy.sd.VAE):
    """Core's VAE around the embedded autoencoder; core's own encode, decode and tiled paths do the work."""

    def __init__(self, autoencoder: PatchAutoencoder):
        # Core chooses a network by keys. This one, of a single number, lets it set up everything else.
        super().__init__(sd={"pixel_space_vae": torch.ones(())}, dtype=torch.float32)
        self.first_stage_model = autoencoder
        self.downscale_ratio = self.upscale_ratio = DOWNSCALE
        self.latent_channels = autoencoder.params.latent_channels
        # Values that live at once per pixel in (encode) or per latent in (decode), in round numbers.
        self.memory_used_encode = lambda shape, dtype: 32 * shape[2] * shape[3] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: 4096 * shape[2] * shape[3] * dtype.itemsize
        self.patcher = managed(autoencoder, self.device, comfy.model_management.vae_offload_device(), whole=True)
        self.size, self.tile_overlap = None, autoencoder.tile_overlap

    @torch.no_grad()
    def encode_degraded(self, pixels: Tensor) -> Tensor:
        """Return cleaned raw latents [B, 16, H / 8, W / 8] of degraded images [B, H, W, 3] in [0, 1]; see `encode`."""
        latents = self.encode(pixels)
        return self.first_stage_model.cleaner(latents.to(self.device, self.vae_dtype)).to(latents)


class NullTokenizer:
    """Take any text and keep none of it."""

    def __init__(self, **_: Any):
        self.told = False

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, list[Any]]:
        """Return no tokens, under the names that SD3's text nodes look for."""
        if text.strip() and not self.told:
            logging.info("EAM: the embedded model knows no text, so the prompt changes nothing")
            self.told = True
        return {"l": [], "g": [], "t5xxl": []}

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing to save."""
        return {}


class NullTextEncoder(nn.Module):
    """Give the zero tokens that the embedded base was trained with, whatever the text."""

    dtypes = (torch.float32,)

    def __init__(self, shape: tuple[int, int, int], pooled_size: int, **_: Any):
        super().__init__()
        self.shape, self.pooled_size = shape, pooled_size

    def encode_token_weights(self, tokens: dict[str, list[Any]]) -> tuple[Tensor, Tensor]:
        """Return context [1, tokens, context_size] and pooled [1, pooled_size]."""
        device = comfy.model_management.intermediate_device()
        return torch.zeros(self.shape, device=device), torch.zeros(1, self.pooled_size, device=device)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Accept any option; there is nothing to set."""

    def reset_clip_options(self) -> None:
        """Accept; there is nothing to reset."""
