"""The whole restoration as a library: load the parts, enlarge, encode, sample over tiles, decode, fix colours."""

import json
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .checkpoint import build_autoencoder, build_control, build_image_prompt, build_mmdit, check_pair
from .color import apply_color_fix
from .denoiser import Progress, Text, TiledDenoiser
from .diffusers_keys import read_transformer
from .errors import CheckpointError, EAMError
from .flow import schedule
from .guidance import needs_negative
from .images import Picture, check_size, resize
from .model.autoencoder import DOWNSCALE, Autoencoder, scale_latents, unscale_latents
from .model.layers import Factory
from .model.psi_dit import PsiDiT
from .presets import EMBEDDED, NUM_NULL_TOKENS, SD3, Spec
from .restore_config import RestoreConfig
from .sampling import get_sampler, initial_latents, make_noise
from .tiling import tiled_map
from .vision import VisionTower, fitting_tower
from .weight_files import read_metadata, read_weights

# Pixels; the autoencoder needs far less memory per pixel than the transformer, and its seams show sooner.
AUTOENCODER_TILE, AUTOENCODER_OVERLAP = 1024, 128


class TextEncoder(Protocol):
    """What restoring needs of text encoders."""

    def encode(self, prompts: list[str]) -> list[Text]: ...


@dataclass(frozen=True, kw_only=True)
class NullText:
    """Stand in for text encoders: zero tokens for any prompt."""

    num_tokens: int
    context_size: int
    pooled_size: int

    def encode(self, prompts: list[str]) -> list[Text]:
        """Return zeros, and warn when there was something to encode."""
        if any(prompts):
            warnings.warn("the prompt has no effect: no text encoders are loaded", stacklevel=2)
        return [Text(torch.zeros(1, self.num_tokens, self.context_size), torch.zeros(1, self.pooled_size))] * len(
            prompts
        )


class Restorer:
    """The loaded parts of one model, ready to restore pictures."""

    def __init__(
        self,
        *,
        model: PsiDiT,
        autoencoder: Autoencoder,
        text: TextEncoder,
        image_encoder: VisionTower | None = None,
        spec: Spec = EMBEDDED,
    ):
        """Join parts that lie on one device; the model's own dtype is what it runs in.

        Raises:
            CheckpointError: the autoencoder's latents or the image encoder's tokens do not fit the model.
        """
        self.image_encoder = fitting_tower(model.image_prompt, image_encoder)
        self.model, self.autoencoder, self.text, self.spec = model.eval().requires_grad_(False), autoencoder, text, spec
        self.device = next(model.parameters()).device
        wanted = model.base.params.in_channels
        got = self.encode(torch.zeros(1, 3, 16, 16)).shape[1]
        if got != wanted:
            raise CheckpointError(
                f"expected an autoencoder with {wanted} latent channels like the base, got {got}; "
                "choose the one the base was trained with"
            )

    @classmethod
    def embedded(cls, device: str = "cpu") -> "Restorer":
        """Load the default that ships with the package; it knows no text."""
        base, control, autoencoder = EMBEDDED.base, EMBEDDED.control, EMBEDDED.autoencoder
        assert base and control and autoencoder
        return cls.from_files(base=base, control=control, autoencoder=autoencoder, device=device)

    @classmethod
    def from_files(
        cls,
        *,
        base: str | Path,
        control: str | Path,
        autoencoder: str | Path,
        text_encoders: str | Path | None = None,
        image_encoder: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "Restorer":
        """Load a model from weight files on this machine; nothing is downloaded or unpickled.

        Args:
            base: safetensors file of an SD3 transformer or whole checkpoint, or a diffusers folder.
            control: safetensors file of EAM control weights, trained for this base.
            autoencoder: diffusers folder of SD3's autoencoder, or a safetensors file of an EAM autoencoder.
            text_encoders: folder of an SD3 pipeline in diffusers' layout; None runs without text.
            image_encoder: transformers folder of the CLIP vision tower that the control's image prompt was trained
                with; None runs without image prompt.
            device: "cpu", "cuda", ...
            dtype: of base and control; float32 on the CPU and for text-free bases, else bfloat16.

        Raises:
            CheckpointError: a file is not what it should be, or they do not belong together.
            EAMError: the device is missing, or a package that SD3's parts need.
        """
        _check_device(device)
        spec = spec_of(base)
        if dtype is None:
            dtype = torch.float32 if spec is EMBEDDED or device == "cpu" else torch.bfloat16
        factory = Factory(dtype=dtype, device=device)
        # The small file first, so that a wrong one is refused before gigabytes are read.
        source, weights = Path(control).name, read_weights(control)
        stream, prompt = build_control(weights, source, factory), build_image_prompt(weights, source, factory)
        mmdit = build_mmdit(read_transformer(base), Path(base).name, factory)
        for part in (stream, prompt) if prompt else (stream,):
            check_pair(mmdit.params, part.params, source)
        text: TextEncoder = NullText(
            num_tokens=spec.num_null_tokens,
            context_size=mmdit.params.context_size,
            pooled_size=mmdit.params.pooled_size,
        )
        if text_encoders is not None:
            from .sd3 import SD3TextEncoder

            text = SD3TextEncoder(text_encoders, context_size=mmdit.params.context_size, device=device)
        return cls(
            model=PsiDiT(mmdit, stream, prompt),
            autoencoder=_autoencoder(autoencoder, device),
            text=text,
            image_encoder=None if image_encoder is None else VisionTower(image_encoder),
            spec=spec,
        )

    def check(self, config: RestoreConfig) -> None:
        """Refuse settings that this model cannot serve.

        Raises:
            ValueError: a tile is larger than the base's position table.
        """
        params = self.model.base.params
        limit = params.pos_embed_max_size * params.patch_size * DOWNSCALE
        if config.tile > limit:
            raise ValueError(f"expected tiles of at most {limit} pixels for this model, got {config.tile}; lower tile")

    @torch.no_grad()
    def restore(self, image: Tensor, config: RestoreConfig, on_progress: Progress | None = None) -> Tensor:
        """Enlarge and restore images.

        Args:
            image: [B, 3, H, W] in [0, 1].
            config: settings, see `RestoreConfig`.
            on_progress: see `Progress`.

        Returns:
            [B, 3, round(H * scale), round(W * scale)] in [0, 1], float32, on the CPU.

        Raises:
            ImageError: the size is out of bounds.
            ValueError: the shape or a setting does not fit.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"expected images [B, 3, H, W], got {tuple(image.shape)}; pass RGB in BCHW order")
        self.check(config)
        height, width = image.shape[-2:]
        check_size(height, width, config.scale)
        enlarged = resize(
            image.float().cpu(), (latent_aligned(height, config.scale), latent_aligned(width, config.scale))
        )
        lr_latents = self.encode(enlarged)
        noise = make_noise(tuple(lr_latents.shape), config.seed).to(self.device)
        # On the CPU, once per picture, so that the transformer has the device's memory for itself.
        tokens = self.image_encoder.encode(image.float().cpu()) if self.image_encoder else None
        denoiser = TiledDenoiser(self.model, lr_latents, *self._texts(config), config, on_progress, tokens)
        sigmas = schedule(config.steps, config.shift, config.sigma_start)
        start = initial_latents(noise, lr_latents, config.sigma_start)
        latents = get_sampler(config.sampler)(denoiser, start, sigmas, None)
        restored = apply_color_fix(self.decode(latents), enlarged, config.color_fix)
        size = (round(height * config.scale), round(width * config.scale))
        return restored if restored.shape[-2:] == size else resize(restored, size)

    def restore_picture(self, picture: Picture, config: RestoreConfig, on_progress: Progress | None = None) -> Picture:
        """Restore a picture's colours, enlarge its transparency alongside and keep its colour profile."""
        rgb = self.restore(picture.rgb, config, on_progress)
        alpha = None if picture.alpha is None else resize(picture.alpha, (rgb.shape[-2], rgb.shape[-1]))
        return Picture(rgb=rgb, alpha=alpha, icc_profile=picture.icc_profile)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents [B, C, H/8, W/8] as the network takes them, of degraded images [B, 3, H, W] in [0, 1]."""
        raw = tiled_map(
            lambda tiles: self.autoencoder.encode_degraded(tiles.to(self.device) * 2 - 1),
            images,
            tile=AUTOENCODER_TILE,
            overlap=AUTOENCODER_OVERLAP,
            scale=Fraction(1, DOWNSCALE),
        )
        return scale_latents(raw.float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, 8H, 8W] in [0, 1], on the CPU, of latents as the network takes them."""
        decoded = tiled_map(
            lambda tiles: self.autoencoder.decode(tiles).float().cpu(),
            unscale_latents(latents),
            tile=AUTOENCODER_TILE // DOWNSCALE,
            overlap=AUTOENCODER_OVERLAP // DOWNSCALE,
            scale=DOWNSCALE,
        )
        return ((decoded + 1) / 2).clamp(0, 1)

    def _texts(self, config: RestoreConfig) -> tuple[Text, Text | None]:
        dtype = next(self.model.parameters()).dtype
        texts = self.text.encode([config.prompt, config.negative_prompt])
        positive, negative = (Text(*(part.to(self.device, dtype) for part in text)) for text in texts)
        if not all(torch.equal(*parts) for parts in zip(positive, negative)):
            return positive, negative
        if needs_negative(config.cfg_scale):
            warnings.warn("cfg_scale has no effect: prompt and negative prompt are the same to the model", stacklevel=3)
        return positive, None


def latent_aligned(side: int, scale: float) -> int:
    """Return the side in pixels at which a picture is restored: side * scale, rounded to a whole latent."""
    return round(side * scale / DOWNSCALE) * DOWNSCALE


def spec_of(base: str | Path) -> Spec:
    """Tell which family's defaults a base wants: those of the embedded one when it was trained without text.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if base == EMBEDDED.base:
        return EMBEDDED
    metadata = {} if Path(base).is_dir() else read_metadata(base)
    try:
        training = json.loads(metadata.get("training", "{}"))
    except ValueError:  # somebody else's note under the same name
        training = {}
    return EMBEDDED if NUM_NULL_TOKENS in training else SD3


def _autoencoder(path: str | Path, device: str) -> Autoencoder:
    if Path(path).is_dir():
        from .sd3 import SD3Autoencoder

        return SD3Autoencoder(path, device=device)
    return build_autoencoder(read_weights(path), Path(path).name).float().to(device)


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EAMError(f"expected a device that torch can use, got {device!r}; use cpu") from error
