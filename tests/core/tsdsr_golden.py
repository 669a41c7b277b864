"""Outputs of the TSD-SR authors' own code on small random weights, as tsdsr_README.md beside them describes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from eam_core.companions import save_embeddings
from eam_core.denoiser import Text
from eam_core.pipeline import Restorer

FOLDER = Path(os.environ.get("EAM_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
FILES = sorted(path.name for path in FOLDER.glob("tsdsr_*.safetensors"))


@dataclass(frozen=True)
class Golden:
    """One file: tensors and metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def load(cls, name: str) -> "Golden":
        with safe_open(FOLDER / name, "pt") as file:
            return cls(load_file(FOLDER / name), file.metadata())

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, without it; what is stored in half precision as float32."""
        found = {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}
        return {key: value.float() if value.dtype == torch.float16 else value for key, value in found.items()}

    @property
    def base(self) -> dict[str, Tensor]:
        return self.group("base/model.diffusion_model.")

    @property
    def autoencoder(self) -> dict[str, Tensor]:
        """The autoencoder in SD3's layout."""
        return self.group("base/first_stage_model.")

    @property
    def text(self) -> Text:
        return Text(self["embeds/prompt_embeds"], self["embeds/pool_embeds"])

    @property
    def cases(self) -> dict[str, Any]:
        return json.loads(self.metadata["cases"])

    @property
    def vae_config(self) -> dict[str, Any]:
        return json.loads(self.metadata["vae_config"])

    def save_control(self, folder: Path) -> Path:
        """Write the control as its authors publish it, with the embeddings converted; return the transformer's file."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.group("lora_transformer/"), folder / "transformer.safetensors")
        save_file(self.group("lora_vae/"), folder / "vae.safetensors")
        save_embeddings(folder / "embeddings.safetensors", self.text)
        return folder / "transformer.safetensors"

    def save_base(self, path: Path, prefix: str = "") -> Path:
        save_file({prefix + key: value for key, value in self.base.items()}, path)
        return path

    def save_autoencoder(self, diffusers: Any, folder: Path) -> Path:
        """Write the autoencoder as a folder of diffusers."""
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        vae = diffusers.AutoencoderKL(**self.vae_config)
        vae.load_state_dict(convert_ldm_vae_checkpoint(self.autoencoder, self.vae_config))
        vae.save_pretrained(folder)
        return folder


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance


def photo(golden: Golden, case: str) -> Tensor:
    """Return the picture of a case as [1,3,H,W] in [0,1]."""
    return golden[f"{case}/lr_image_uint8"].permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def velocity(restorer: Restorer, latents: Tensor) -> Tensor:
    text = restorer.text.encode([""])[0]
    num = len(latents)
    args = (text.context.expand(num, -1, -1), text.pooled.expand(num, -1))
    return restorer.model(latents, torch.full((num,), 1000.0), *args, latents)
