"""SD3's autoencoder and text encoders for use without ComfyUI, run by diffusers and transformers.

Both packages are extras and imported only here, when asked for. Local folders only; nothing is downloaded, unpickled
or run from a model's folder.
"""

import gc
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import Text
from .errors import CheckpointError, EAMError
from .model.autoencoder import SD3_SCALE, SD3_SHIFT

NUM_CLIP_TOKENS, NUM_T5_TOKENS = 77, 256
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_WEIGHTS = {"local_files_only": True, "use_safetensors": True}


class SD3Autoencoder:
    """Diffusers' `AutoencoderKL` as an `Autoencoder`: encodes to the mode, raw latents without scaling."""

    def __init__(self, folder: str | Path, *, device: str = "cpu"):
        """Load from a diffusers folder; a pipeline's folder is searched for its `vae`.

        Raises:
            EAMError: diffusers is not installed.
            CheckpointError: the folder holds something else, or an autoencoder with another scaling.
        """
        folder = Path(folder)
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
        kind = _package("diffusers").AutoencoderKL
        # Loading with little memory would want a further package, accelerate, for 0.3 GB of weights.
        options = _WEIGHTS | {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
        self.vae = _load(kind, folder, "SD3's autoencoder", **options)
        self.vae = self.vae.to(device).eval().requires_grad_(False)
        got = (self.vae.config.scaling_factor, self.vae.config.shift_factor)
        if got != (SD3_SCALE, SD3_SHIFT):
            raise CheckpointError(
                f"expected SD3's autoencoder (scaling {SD3_SCALE}, shift {SD3_SHIFT}), but {folder} has scaling "
                f"{got[0]}, shift {got[1]}; choose the vae folder of an SD3 model"
            )

    def encode(self, images: Tensor) -> Tensor:
        """Return raw latents [B, 16, H / 8, W / 8] of images [B, 3, H, W] in [-1, 1]."""
        return self.vae.encode(images).latent_dist.mode()

    def decode(self, raw: Tensor) -> Tensor:
        """Return images [B, 3, 8H, 8W], about in [-1, 1], from raw latents."""
        return self.vae.decode(raw).sample


class SD3TextEncoder:
    """CLIP-L, CLIP-G and, where present, T5 from an SD3 pipeline's folder.

    Each encoder is loaded for the moment it runs and dropped again: together they are larger than the transformer.
    """

    def __init__(self, folder: str | Path, *, context_size: int = 4096, device: str = "cpu"):
        """Look at the folder; weights are read by `encode`.

        Raises:
            EAMError: transformers is not installed.
            CheckpointError: the folder lacks an encoder or a tokenizer.
        """
        self.folder, self.context_size, self.device = Path(folder), context_size, device
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.transformers = _package("transformers")
        self.has_t5 = (self.folder / "text_encoder_3").is_dir()
        for suffix in ("", "_2", "_3") if self.has_t5 else ("", "_2"):
            for part in ("text_encoder", "tokenizer"):
                if not (self.folder / f"{part}{suffix}").is_dir():
                    raise CheckpointError(
                        f"expected an SD3 pipeline's folder with {part}{suffix} in it, but {self.folder} has none; "
                        "name the folder that holds text_encoder, text_encoder_2 and their tokenizers"
                    )
        self._known: dict[str, Text] = {}

    def encode(self, prompts: list[str]) -> list[Text]:
        """Encode prompts as SD3 does (SD3 section 4): CLIP tokens side by side, then T5 tokens (zeros without T5).

        Returns:
            Per prompt context [1, 77 + 256, context_size] and pooled [1, CLIP-L + CLIP-G].
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            clip = [self._clip(new, suffix) for suffix in ("", "_2")]
            tokens = torch.cat([hidden for hidden, _ in clip], dim=-1)
            pooled = torch.cat([vector for _, vector in clip], dim=-1)
            t5 = self._t5(new) if self.has_t5 else tokens.new_zeros(len(new), NUM_T5_TOKENS, self.context_size)
            if t5.shape[-1] != self.context_size or tokens.shape[-1] > self.context_size:
                raise CheckpointError(
                    f"expected text encoders for tokens of {self.context_size} channels, but {self.folder} gives "
                    f"{tokens.shape[-1]} (CLIP) and {t5.shape[-1]} (T5); choose those of the base's own family"
                )
            context = torch.cat([F.pad(tokens, (0, self.context_size - tokens.shape[-1])), t5], dim=1)
            self._known |= {prompt: Text(context[i : i + 1], pooled[i : i + 1]) for i, prompt in enumerate(new)}
        return [self._known[prompt] for prompt in prompts]

    @torch.no_grad()
    def _clip(self, prompts: list[str], suffix: str) -> tuple[Tensor, Tensor]:
        encoder = self._encoder(self.transformers.CLIPTextModelWithProjection, suffix)
        out = encoder(self._tokens(prompts, suffix, NUM_CLIP_TOKENS), output_hidden_states=True)
        result = out.hidden_states[-2].float().cpu(), out.text_embeds.float().cpu()
        del encoder, out
        self._free()
        return result

    @torch.no_grad()
    def _t5(self, prompts: list[str]) -> Tensor:
        encoder = self._encoder(self.transformers.T5EncoderModel, "_3")
        result = encoder(self._tokens(prompts, "_3", NUM_T5_TOKENS))[0].float().cpu()
        del encoder
        self._free()
        return result

    def _encoder(self, kind: Any, suffix: str) -> Any:
        folder = self.folder / f"text_encoder{suffix}"
        return _load(kind, folder, "a text encoder", torch_dtype=self.dtype, **_WEIGHTS).to(self.device).eval()

    def _tokens(self, prompts: list[str], suffix: str, length: int) -> Tensor:
        folder = self.folder / f"tokenizer{suffix}"
        tokenizer = _load(self.transformers.AutoTokenizer, folder, "a tokenizer", **_LOCAL)
        batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return batch.input_ids.to(self.device)

    def _free(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _package(name: str) -> Any:
    try:
        return import_module(name)
    # A package that does not fit its neighbours fails with whatever error its import trips over.
    except Exception as error:
        raise EAMError(
            f"expected the package {name} for SD3's own parts, but it cannot be imported ({error}); "
            "run pip install comfyui-eam[sd3]"
        ) from error


def _load(kind: Any, folder: Path, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(folder), **options)
    # transformers and diffusers raise OSError, ValueError, KeyError, SafetensorError... for what is wrong in a folder.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"expected {what} in {folder}, but it cannot be loaded ({first_line}); download the folder again"
        ) from error
