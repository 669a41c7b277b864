"""What the tests of DiT4SR share: a ComfyUI with the authors' small random weights, and graphs around the control."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import ComfyServer
from dit4sr_golden import FOLDER, Golden, save_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from eam_core.checkpoint import CHECKPOINT_PREFIX
from eam_core.weight_files import save_weights

TOLERANCE = 1e-4
HOST, RUNS = "dit4sr_{}_host.safetensors", "dit4sr_{}_sampling.safetensors"
SHARDS = "dit4sr_q/transformer/diffusion_pytorch_model.safetensors.index.json"
WHOLE = "dit4sr_r1/transformer/diffusion_pytorch_model.safetensors"
RULES = {"v1": "first", "r1": "r1"}
QKV = "joint_blocks.0.x_block.attn.qkv"
RANK = 4


@contextmanager
def dit4sr_host(folder: Path) -> Iterator[ComfyServer]:
    """Start a ComfyUI in a folder, with the authors' weights and a picture in it."""
    (folder / "custom_nodes").mkdir()
    shutil.copy(Path(__file__).with_name("dit4sr_pack.py"), folder / "custom_nodes")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with ComfyServer(folder) as running:
            save_models(folder / "models")
            coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(folder / "photo.png")
            running.upload_image(folder / "photo.png")
            yield running


def save_models(models: Path) -> None:
    """Write the authors' small random weights as a base in SD3's layout and as published folders."""
    weights, base = Golden.load(HOST.format("v1")).weights, Golden.load(HOST.format("v1")).base
    for name in ("checkpoints", "diffusion_models", "loras"):
        (models / name).mkdir(parents=True, exist_ok=True)
    save_folder((models / "model_patches" / SHARDS).parent, weights, 3)
    save_folder((models / "model_patches" / WHOLE).parent, weights)
    save_weights(models / "diffusion_models" / "base.safetensors", base)
    shutil.copy(models / "model_patches" / WHOLE, models / "diffusion_models" / "dit4sr.safetensors")
    torch.manual_seed(0)
    tuned = {key: value + 0.05 * value.std() * torch.randn(value.shape) for key, value in base.items()}
    save_weights(models / "diffusion_models" / "tuned.safetensors", tuned)
    save_weights(
        models / "checkpoints" / "base.safetensors", {CHECKPOINT_PREFIX + key: value for key, value in base.items()}
    )
    lora = {"lora_up.weight": torch.randn(384, RANK), "lora_down.weight": torch.randn(RANK, 128)}
    save_file(
        {f"diffusion_model.{QKV}.{key}": 0.2 * value for key, value in lora.items()},
        models / "loras" / "lora.safetensors",
    )


class Graph:
    """A prompt in the making: a base of choice with the control on a picture."""

    def __init__(self, host: ComfyServer, base: str = "base", control: str = SHARDS, rule: str = "first") -> None:
        self.host, self.prompt = host, {}
        self.loaded = self.add("EAM_LoadModel", checkpoint="embedded (tiny, no text)", control=control)
        self.model = self.link("UNETLoader", unet_name=f"{base}.safetensors", weight_dtype="default")
        self.control = self.link("EAM_ControlSettings", control=[self.loaded, 3], key_rule=rule, conv_scale=1.2)

    def add(self, kind: str, **inputs: Any) -> str:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        return node

    def link(self, kind: str, **inputs: Any) -> Any:
        return [self.add(kind, **inputs), 0]

    def text(self, side: str, run: str = "untiled") -> Any:
        return self.link("FileCond", file=runs(), text=f"{run}.text_{side}", pooled=f"{run}.pooled_{side}")

    def apply(self, **changes: Any) -> str:
        image = self.link("LoadImage", image="photo.png")
        numbers = {"scale": 4.0, "control_scale": 1.0, "start": 0.0, "end": 1.0}
        links = {"model": self.model, "vae": [self.loaded, 2], "control": self.control, "image": image}
        links |= {side: self.text(side) for side in ("positive", "negative") if side not in changes}
        self.applied = self.add("EAM_ApplyControl", **links | numbers | changes)
        return self.applied

    def velocity(self, variant: str = "v1", model: Any = None, **changes: Any) -> Tensor:
        model = model or [self.apply(**changes), 0]
        return self.latents(self.link("Velocity", model=model, file=str(FOLDER / HOST.format(variant))))

    def tiled(self, model: Any = None, **changes: Any) -> Any:
        links = {"model": model or [self.applied, 0], "latent": [self.applied, 3]}
        links |= {"positive": [self.applied, 1], "negative": [self.applied, 2]}
        numbers: dict[str, Any] = {"seed": 3, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"}
        numbers |= {"start_sigma": 1.0, "fidelity": 0.0, "tile": 96, "overlap": 32, "tile_batch": 1}
        return self.link("EAM_TiledSampler", **links | numbers | changes)

    def latents(self, latent: Any) -> Tensor:
        saved = self.add("SaveLatent", samples=latent, filename_prefix="test")
        found = self.host.run(self.prompt)[saved]["latents"][0]
        return load_file(self.host.work_dir / "output" / found["subfolder"] / found["filename"])["latent_tensor"]


def runs(variant: str = "v1") -> str:
    return str(FOLDER / RUNS.format(variant))


def log_after(host: ComfyServer, start: int) -> str:
    return host.log_path.read_text(errors="replace")[start:]


def log_size(host: ComfyServer) -> int:
    return len(host.log_path.read_text(errors="replace"))
