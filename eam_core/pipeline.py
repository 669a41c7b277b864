"""The whole restoration as a library: load the parts, enlarge, encode, sample over tiles, decode, fix colours."""

import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .color import color_fix_in_place
from .compiling import compile_in_place
from .denoiser import Progress, Text, TiledDenoiser
from .errors import CheckpointError
from .flow import schedule
from .guidance import needs_negative
from .images import Picture, check_size, resize
from .loading import TextEncoder, load_parts
from .model.autoencoder import DOWNSCALE, Autoencoder, scale_latents, unscale_latents
from .model.family import NO_STRENGTH
from .model.psi_dit import PsiDiT
from .presets import EMBEDDED, Spec
from .restore_config import RestoreConfig
from .sampling import get_sampler, make_noise
from .start import crop_canvas, encode_posterior, first_latents, make_canvas, result_size, scale_posterior
from .tile_plan import fitting_tile
from .tiling import tiled_map
from .vision import VisionTower, fitting_tower

# Pixels; the autoencoder needs far less memory per pixel than the transformer, and its seams show sooner. One that
# knows how far its convolutions see says itself how much its tiles must overlap.
AUTOENCODER_TILE, AUTOENCODER_OVERLAP = 1024, 128


def autoencoder_tiles(
    autoencoder: object, height: int, width: int, *, unit: int = 1, align: int = 1, decoding: bool = False
) -> tuple[int, int]:
    """Return the tile and overlap of `tiled_map` for an autoencoder and a picture, in units of `unit` pixels."""
    largest = getattr(autoencoder, "decode_tile", AUTOENCODER_TILE) if decoding else AUTOENCODER_TILE
    overlap = getattr(autoencoder, "tile_overlap", AUTOENCODER_OVERLAP) // unit
    return fitting_tile(height, width, tile=largest // unit, overlap=overlap, align=align), overlap


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
        self.device, self.compiled = next(model.parameters()).device, False
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
        control_settings: Mapping[str, Any] | None = None,
    ) -> "Restorer":
        """Load a model from weight files on this machine; nothing is downloaded or unpickled.

        Args:
            base: safetensors file of an SD3 transformer or whole checkpoint, or a diffusers folder.
            control: safetensors file of EAM control weights, trained for this base, or the file, index of shards or
                folder of a published model; what lies beside the file is read where it belongs to it.
            autoencoder: diffusers folder of SD3's autoencoder, or a safetensors file of an EAM autoencoder.
            text_encoders: folder of an SD3 pipeline in diffusers' layout; None runs without text.
            image_encoder: transformers folder of the CLIP vision tower that the control's image prompt was trained
                with; None runs without image prompt.
            device: "cpu", "cuda", ...
            dtype: of base and control; float32 on the CPU and for text-free bases, else bfloat16.
            control_settings: other values of what the control leaves open, see `checkpoint.with_settings`.

        Raises:
            CheckpointError: a file is not what it should be, or they do not belong together.
            EAMError: the device is missing, or a package that SD3's parts need.
        """
        parts = load_parts(
            base=base,
            control=control,
            autoencoder=autoencoder,
            text_encoders=text_encoders,
            image_encoder=image_encoder,
            device=device,
            dtype=dtype,
            control_settings=control_settings or {},
        )
        return cls(**parts)

    def check(self, config: RestoreConfig) -> None:
        """Refuse settings that this model cannot serve.

        Raises:
            ValueError: a tile is larger than the base's position table, or the model's start leaves no choice of steps.
        """
        if self.spec.start == "lr" and (config.steps, config.sigma_start) != (self.spec.steps, 1.0):
            raise ValueError(
                f"expected steps {self.spec.steps} and sigma_start 1 for {self.spec.name}, got {config.steps} and "
                f"{config.sigma_start:g}; leave both out, in code with RestoreConfig.from_spec"
            )
        if self.spec.start == "lr" and (config.control_start, config.control_end) != (0.0, 1.0):
            raise ValueError(
                f"expected control_start 0 and control_end 1 for {self.spec.name}, which changes weights, got "
                f"{config.control_start:g} and {config.control_end:g}; leave both out"
            )
        if self.spec.start == "lr" and config.control_scale == 0:
            raise ValueError(f"expected control_scale 1 for {self.spec.name}, whose weights are the base's, got 0")
        params = self.model.base.params
        limit = params.pos_embed_max_size * params.patch_size * DOWNSCALE
        if config.tile > limit:
            raise ValueError(f"expected tiles of at most {limit} pixels for this model, got {config.tile}; lower tile")

    @torch.no_grad()
    def compile(self, config: RestoreConfig, *, backend: str = "inductor") -> None:
        """Compile the transformer for tiles as the settings make them; pays after some thousand tiles on a CPU.

        Tiles overlap in every step from then on, so that all have one size.

        Raises:
            CompileError: this machine cannot, see `compiling.compile_in_place`.
        """
        side = config.tile // DOWNSCALE
        latents = torch.zeros(1, self.model.base.params.in_channels, side, side, device=self.device)
        denoiser = TiledDenoiser(self.model, latents, *self._texts(config), config, fixed_tiles=True)
        compile_in_place(self.model, lambda: denoiser(latents, config.sigma_start), backend=backend)
        self.compiled = True

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
        if not self.model.control.has_strength and config.control_scale not in (0.0, 1.0):
            warnings.warn(NO_STRENGTH, stacklevel=2)
        height, width = image.shape[-2:]
        check_size(height, width, config.scale)
        canvas = make_canvas(image.float().cpu(), config.scale, self.spec)
        lr_latents, spread = self.encode_start(canvas)
        noise = make_noise(tuple(lr_latents.shape), config.seed).to(self.device)
        # On the CPU, once per picture, so that the transformer has the device's memory for itself.
        tokens = self.image_encoder.encode(image.float().cpu()) if self.image_encoder else None
        inputs = self.model, lr_latents, *self._texts(config), config, on_progress, tokens
        denoiser = TiledDenoiser(*inputs, fixed_tiles=self.compiled)
        sigmas = schedule(config.steps, config.shift, config.sigma_start, scheduler=config.scheduler)
        start = first_latents(lr_latents, spread, noise, config)
        latents = get_sampler(config.sampler)(denoiser, start, sigmas, None)
        restored, enlarged = crop_canvas(self.decode(latents), canvas, image.float().cpu(), config.scale, self.spec)
        restored = color_fix_in_place(restored, enlarged, config.color_fix)
        size = result_size(image, config.scale)
        return restored if restored.shape[-2:] == size else resize(restored, size)

    def restore_picture(self, picture: Picture, config: RestoreConfig, on_progress: Progress | None = None) -> Picture:
        """Restore a picture's colours, enlarge its transparency alongside and keep its colour profile."""
        rgb = self.restore(picture.rgb, config, on_progress)
        alpha = None if picture.alpha is None else resize(picture.alpha, (rgb.shape[-2], rgb.shape[-1]))
        return Picture(rgb=rgb, alpha=alpha, icc_profile=picture.icc_profile)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents [B, C, H/8, W/8] as the network takes them, of degraded images [B, 3, H, W] in [0, 1]."""
        return scale_latents(self._encoded(self.autoencoder.encode_degraded, images), self.spec.latent_shift)

    @torch.no_grad()
    def encode_start(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return `encode`'s latents and, for a model that starts from them, their standard deviation."""
        if self.spec.start == "noise":
            return self.encode(images), None
        both = self._encoded(lambda tiles: encode_posterior(self.autoencoder, tiles), images)
        return scale_posterior(both, self.spec)

    def _encoded(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        tile, overlap = autoencoder_tiles(self.autoencoder, *images.shape[-2:], align=DOWNSCALE)
        return tiled_map(
            lambda tiles: encode(tiles.to(self.device) * 2 - 1),
            images,
            tile=tile,
            overlap=overlap,
            scale=Fraction(1, DOWNSCALE),
        ).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, 8H, 8W] in [0, 1], on the CPU, of latents as the network takes them."""
        tile, overlap = autoencoder_tiles(self.autoencoder, *latents.shape[-2:], unit=DOWNSCALE, decoding=True)
        decoded = tiled_map(
            lambda tiles: self.autoencoder.decode(tiles).float().cpu(),
            unscale_latents(latents, self.spec.latent_shift),
            tile=tile,
            overlap=overlap,
            scale=DOWNSCALE,
        )
        return decoded.add_(1).div_(2).clamp_(0, 1)  # in its own memory, which large pictures fill

    def _texts(self, config: RestoreConfig) -> tuple[Text, Text | None]:
        dtype = next(self.model.parameters()).dtype
        texts = self.text.encode([config.prompt, config.negative_prompt])
        positive, negative = (Text(*(part.to(self.device, dtype) for part in text)) for text in texts)
        if not all(torch.equal(*parts) for parts in zip(positive, negative)):
            return positive, negative
        if needs_negative(config.cfg_scale):
            warnings.warn("cfg_scale has no effect: prompt and negative prompt are the same to the model", stacklevel=3)
        return positive, None
