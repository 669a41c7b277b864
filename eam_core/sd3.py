"""SD3's autoencoder and text encoders for use without ComfyUI, run by diffusers and transformers.

Both packages are extras and imported only when asked for. Local folders only; nothing is downloaded, unpickled
or run from a model's folder.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .denoiser import Text
from .device import free_cached, usual_dtype
from .errors import CheckpointError
from .lora import LowRank, merge
from .model.autoencoder import SD3_SCALE, SD3_SHIFT
from .pretrained import import_package, load_module, load_tokenizer

NUM_CLIP_TOKENS, NUM_T5_TOKENS = 77, 256


class SD3Autoencoder(nn.Module):
    """Diffusers' `AutoencoderKL` as an `Autoencoder`: encodes to the mode, raw latents without scaling."""

    def __init__(self, folder: str | Path, *, device: str = "cpu", encoder_changes: Sequence[LowRank] = ()):
        """Load from a diffusers folder; a pipeline's folder is searched for its `vae`.

        Args:
            folder: the folder.
            device: "cpu", "cuda", ...
            encoder_changes: what to add to the encoder's weights.

        Raises:
            EAMError: diffusers is not installed.
            CheckpointError: the folder holds something else, an autoencoder with another scaling, or one that the
                changes do not fit.
        """
        super().__init__()
        folder = Path(folder)
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
        kind = import_package("diffusers").AutoencoderKL
        # Loading with little memory would want a further package, accelerate, for 0.3 GB of weights.
        options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
        self.vae = load_module(kind, folder, "SD3's autoencoder", **options)
        self.vae = self.vae.to(device).eval().requires_grad_(False)
        got = (self.vae.config.scaling_factor, self.vae.config.shift_factor)
        if got != (SD3_SCALE, SD3_SHIFT):
            raise CheckpointError(
                f"expected SD3's autoencoder (scaling {SD3_SCALE}, shift {SD3_SHIFT}), but {folder} has scaling "
                f"{got[0]}, shift {got[1]}; choose the vae folder of an SD3 model"
            )

        if encoder_changes:
            # Diffusers' own names: those of SD3's layout are only for hosts that have it.
            changes = [replace(change, key=f"{change.module}.weight") for change in encoder_changes]
            self.vae.load_state_dict(merge(self.vae.state_dict(), changes, "vae.safetensors"))

    def encode(self, images: Tensor) -> Tensor:
        """Return raw latents [B, 16, H / 8, W / 8] of images [B, 3, H, W] in [-1, 1]."""
        return self.vae.encode(images).latent_dist.mode()

    def encode_degraded(self, images: Tensor) -> Tensor:
        """Return raw latents of degraded images as they are: cleaning is the control's work here."""
        return self.encode(images)

    def encode_posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the raw latents of images, each as from `encode`."""
        posterior = self.vae.encode(images).latent_dist
        return posterior.mean, posterior.std

    def decode(self, raw: Tensor) -> Tensor:
        """Return images [B, 3, 8H, 8W], about in [-1, 1], from raw latents."""
        return self.vae.decode(raw).sample


class SD3TextEncoder:
    """CLIP-L, CLIP-G and, where present, T5 from an SD3 pipeline's folder.

    `encode` loads each encoder for the moment it runs and drops it again: together they are larger than the
    transformer. `encode_batches` holds them all, for many prompts.
    """

    def __init__(self, folder: str | Path, *, context_size: int = 4096, device: str = "cpu"):
        """Look at the folder; weights are read by `encode`.

        Raises:
            EAMError: transformers is not installed.
            CheckpointError: the folder lacks an encoder or a tokenizer.
        """
        self.folder, self.context_size, self.device = Path(folder), context_size, device
        self.dtype = usual_dtype(device)
        self.transformers = import_package("transformers")
        self.has_t5 = (self.folder / "text_encoder_3").is_dir()
        for suffix in ("", "_2", "_3") if self.has_t5 else ("", "_2"):
            for part in ("text_encoder", "tokenizer"):
                if not (self.folder / f"{part}{suffix}").is_dir():
                    raise CheckpointError(
                        f"expected an SD3 pipeline's folder with {part}{suffix} in it, but {self.folder} has none; "
                        "name the folder that holds text_encoder, text_encoder_2 and their tokenizers"
                    )
        self._known: dict[str, Text] = {}
        self._held: dict[str, Any] | None = None  # encoders and tokenizers in memory, while `encode_batches` runs

    def encode(self, prompts: list[str]) -> list[Text]:
        """Encode prompts as SD3 does (SD3 section 4): CLIP tokens side by side, then T5 tokens (zeros without T5).

        Returns:
            Per prompt context [1, 77 + 256, context_size] and pooled [1, CLIP-L + CLIP-G].
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            self._known |= dict(zip(new, self._encode(new)))
        return [self._known[prompt] for prompt in prompts]

    def encode_batches(self, prompts: Sequence[str], batch_size: int) -> Iterator[list[Text]]:
        """Encode many prompts, `batch_size` at a time, with all encoders in memory until the last one.

        Args:
            prompts: any number; results are not remembered.
            batch_size: prompts that run through the encoders together.

        Yields:
            What `encode` returns, for each batch.
        """
        self._held = {}
        try:
            for start in range(0, len(prompts), batch_size):
                yield self._encode(prompts[start : start + batch_size])
        finally:
            self._held = None
            self._free()

    def _encode(self, prompts: Sequence[str]) -> list[Text]:
        clip = [self._clip(prompts, suffix) for suffix in ("", "_2")]
        tokens = torch.cat([hidden for hidden, _ in clip], dim=-1)
        pooled = torch.cat([vector for _, vector in clip], dim=-1)
        t5 = self._t5(prompts) if self.has_t5 else tokens.new_zeros(len(prompts), NUM_T5_TOKENS, self.context_size)
        if t5.shape[-1] != self.context_size or tokens.shape[-1] > self.context_size:
            raise CheckpointError(
                f"expected text encoders for tokens of {self.context_size} channels, but {self.folder} gives "
                f"{tokens.shape[-1]} (CLIP) and {t5.shape[-1]} (T5); choose those of the base's own family"
            )
        context = torch.cat([F.pad(tokens, (0, self.context_size - tokens.shape[-1])), t5], dim=1)
        return [Text(context[i : i + 1], pooled[i : i + 1]) for i in range(len(prompts))]

    @torch.no_grad()
    def _clip(self, prompts: Sequence[str], suffix: str) -> tuple[Tensor, Tensor]:
        encoder = self._encoder(self.transformers.CLIPTextModelWithProjection, suffix)
        out = encoder(self._tokens(prompts, suffix, NUM_CLIP_TOKENS), output_hidden_states=True)
        result = out.hidden_states[-2].float().cpu(), out.text_embeds.float().cpu()
        del encoder, out
        self._free()
        return result

    @torch.no_grad()
    def _t5(self, prompts: Sequence[str]) -> Tensor:
        encoder = self._encoder(self.transformers.T5EncoderModel, "_3")
        result = encoder(self._tokens(prompts, "_3", NUM_T5_TOKENS))[0].float().cpu()
        del encoder
        self._free()
        return result

    def _encoder(self, kind: Any, suffix: str) -> Any:
        def load(folder: Path) -> Any:
            module = load_module(kind, folder, "a text encoder", torch_dtype=self.dtype)
            return module.to(self.device).eval()

        return self._hold(f"text_encoder{suffix}", load)

    def _tokens(self, prompts: Sequence[str], suffix: str, length: int) -> Tensor:
        def load(folder: Path) -> Any:
            return load_tokenizer(self.transformers.AutoTokenizer, folder, "a tokenizer")

        tokenizer = self._hold(f"tokenizer{suffix}", load)
        batch = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return batch.input_ids.to(self.device)

    def _hold(self, part: str, load: Callable[[Path], Any]) -> Any:
        """Load a part of the pipeline's folder, or take it from memory where it is held there."""
        if self._held is None:
            return load(self.folder / part)
        if part not in self._held:
            self._held[part] = load(self.folder / part)
        return self._held[part]

    def _free(self) -> None:
        gc.collect()
        free_cached()


def load_token_counter(folder: str | Path) -> Callable[[str], tuple[int, int]]:
    """Return a function that counts a text's tokens for CLIP and for T5 with an SD3 pipeline's own tokenizers.

    Raises:
        EAMError: transformers is not installed.
        CheckpointError: the folder lacks tokenizer or tokenizer_3.
    """
    kind = import_package("transformers").AutoTokenizer
    for part in ("tokenizer", "tokenizer_3"):
        if not (Path(folder) / part).is_dir():
            raise CheckpointError(
                f"expected an SD3 pipeline's folder with {part} in it, but {folder} has none; name another"
            )
    clip, t5 = (load_tokenizer(kind, Path(folder) / part, "a tokenizer") for part in ("tokenizer", "tokenizer_3"))
    return lambda text: (len(clip(text).input_ids), len(t5(text).input_ids))
