"""Outputs of the DiT4SR authors' own code on small random weights, as README.md beside them describes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from eam_core.checkpoint import build_control, build_mmdit, with_settings
from eam_core.diffusers_keys import to_sd3_keys
from eam_core.model.dit4sr import is_control_key, is_dead_key
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiTParams
from eam_core.model.psi_dit import PsiDiT

FOLDER = Path(os.environ.get("EAM_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
FORWARD = sorted(path.name for path in FOLDER.glob("dit4sr_*.safetensors") if not path.stem.endswith("_sampling"))
SAMPLING = sorted(path.name for path in FOLDER.glob("dit4sr_*_sampling.safetensors"))
KEY_RULES = {"v1": "first", "r1": "r1"}
PREFIX = "weights."
TOLERANCE = 1e-5  # what the README of the outputs asks for in float32
SD35_MEDIUM = MMDiTParams(
    depth=24, hidden_size=1536, pos_embed_max_size=384, qk_norm=True, dual_attention_blocks=tuple(range(13))
)

needs_golden = pytest.mark.skipif(not FORWARD, reason="no outputs of the authors' code; set EAM_GOLDEN to their folder")


@dataclass(frozen=True)
class Golden:
    """One file: tensors and metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def load(cls, name: str) -> "Golden":
        path = FOLDER / name
        with safe_open(path, "pt") as file:
            return cls(load_file(path), file.metadata())

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    @property
    def config(self) -> dict:
        return json.loads(self.metadata["config"])

    @property
    def key_rule(self) -> str:
        return KEY_RULES[self.metadata["variant"]]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The transformer as released, base and control together, mixed dtypes as stored."""
        return {key.removeprefix(PREFIX): value for key, value in self.tensors.items() if key.startswith(PREFIX)}

    @property
    def base(self) -> dict[str, Tensor]:
        """The base in SD3's layout."""
        weights = self.weights
        return to_sd3_keys({key: weights[key] for key in weights if not (is_control_key(key) or is_dead_key(key))}, "x")

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """latents, timestep, context, pooled, LR latents."""
        return tuple(self[f"inputs.{name}"] for name in ("latent", "timestep", "text", "pooled", "lr_latent"))

    def model(self, **settings) -> PsiDiT:
        """The network in float32 with the key rule of the file, unless told otherwise."""
        factory = Factory(dtype=torch.float32)
        control = build_control(self.weights, "golden", factory)
        settings = {"key_rule": self.key_rule} | settings
        return PsiDiT(build_mmdit(self.base, "golden", factory), with_settings(control, settings)).eval()


def save_folder(folder: Path, weights: dict[str, Tensor], num_shards: int = 1) -> Path:
    """Write a transformer as diffusers does, whole or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "diffusion_pytorch_model"
    (folder / "config.json").write_text('{"_class_name": "SD3Transformer2DModel"}')
    if num_shards == 1:
        save_file(weights, folder / f"{name}.safetensors")
        return folder
    keys, weight_map = sorted(weights), {}
    for number in range(num_shards):
        part = f"{name}-{number + 1:05}-of-{num_shards:05}.safetensors"
        chosen = keys[number::num_shards]
        save_file({key: weights[key] for key in chosen}, folder / part)
        weight_map |= dict.fromkeys(chosen, part)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    return folder
