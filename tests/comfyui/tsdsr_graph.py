"""What the tests of TSD-SR share: a ComfyUI with the authors' small random weights, and graphs around the control."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tsdsr_golden
from comfy_host import ComfyServer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

LATENTS = 1e-4  # raw latents are about 1; the graph sums in another order
PICTURE = 2 / 255  # of a picture saved with 8 bits
SAMPLING = {"seed": 21, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "sgm_uniform"}
TILED = {"start_sigma": 0.5, "fidelity": 0.0, "tile": 0, "overlap": 0, "tile_batch": 1}
NAME, FOLDER, BASE = "tsdsr/transformer.safetensors", "tsdsr", "tsdsr_base.safetensors"


@contextmanager
def tsdsr_host(golden: tsdsr_golden.Golden, folder: Path) -> Iterator[ComfyServer]:
    """Start a ComfyUI in a folder, with the authors' weights and pictures in it."""
    (folder / "custom_nodes").mkdir()
    shutil.copy(Path(__file__).with_name("tsdsr_pack.py"), folder / "custom_nodes")
    models = folder / "models"
    for kind in ("checkpoints", "diffusion_models", "loras", "model_patches"):
        (models / kind).mkdir(parents=True)
    golden.save_base(models / "checkpoints" / BASE, "model.diffusion_model.")
    golden.save_base(models / "diffusion_models" / BASE)
    golden.save_control(models / "model_patches" / FOLDER)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.setenv("EAM_GOLDEN_FILE", str(tsdsr_golden.FOLDER / tsdsr_golden.FILES[0]))
        with ComfyServer(folder) as running:
            for case in golden.cases:
                path = folder / f"{case}.png"
                Image.fromarray(golden[f"{case}/lr_image_uint8"].numpy()).save(path)
                running.upload_image(path)
            yield running


class Graph:
    """A prompt in the making; nodes are ids, and links are (id, slot)."""

    def __init__(self, server: ComfyServer, control: str = NAME) -> None:
        self.server, self.prompt = server, {}
        self.loaded = self.add("EAM_LoadModel", checkpoint=BASE, control=control)
        self.model, self.control = [self.loaded, 0], [self.loaded, 3]
        self.vae = [self.add("TestGoldenVAE"), 0]
        self.text = [self.add("EAM_ControlPrompt", control=self.control), 0]

    def add(self, kind: str, **inputs: Any) -> str:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        return node

    def photo(self, case: str) -> list[Any]:
        return [self.add("LoadImage", image=f"{case}.png"), 0]

    def apply(self, case: str = "single", **changes: Any) -> str:
        inputs = {"model": self.model, "positive": self.text, "negative": self.text, "vae": self.vae}
        inputs |= {"control": self.control, "image": self.photo(case), "scale": 4.0, "control_scale": 1.0}
        return self.add("EAM_ApplyControl", **inputs | {"start": 0.0, "end": 1.0} | changes)

    def sample(self, applied: str, **changes: Any) -> list[Any]:
        links = {"model": [applied, 0], "positive": [applied, 1], "negative": [applied, 2], "latent": [applied, 3]}
        return [self.add("EAM_TiledSampler", **links | SAMPLING | TILED | changes), 0]

    def sample_by_core(self, applied: str, **changes: Any) -> list[Any]:
        links = {"model": [applied, 0], "positive": [applied, 1], "negative": [applied, 2]}
        links |= {"latent_image": [applied, 3], "denoise": 1.0}
        return [self.add("KSampler", **links | SAMPLING | changes), 0]

    def latents(self, *links: list[Any]) -> list[Tensor]:
        """Run the graph and return LATENTs."""
        saved = [self.add("SaveLatent", samples=link, filename_prefix="test") for link in links]
        outputs = self.server.run(self.prompt)
        found = [outputs[node]["latents"][0] for node in saved]
        folder = self.server.work_dir / "output"
        return [load_file(folder / file["subfolder"] / file["filename"])["latent_tensor"] for file in found]

    def picture(self, latents: list[Any]) -> Tensor:
        """Run the graph and return the decoded picture's 8-bit levels [H, W, 3]."""
        image = self.add("VAEDecode", samples=latents, vae=self.vae)
        saved = self.add("PreviewImage", images=[image, 0])
        found = self.server.run(self.prompt)[saved]["images"][0]
        return torch.from_numpy(np.array(Image.open(io.BytesIO(self.server.fetch(found))).convert("RGB"))).int()

    def velocity(self, model: list[Any], case: str = "single") -> list[Any]:
        return [self.add("TestVelocity", model=model, conditioning=self.text, case=case), 0]


def close(got: Tensor, expected: Tensor, tolerance: float = LATENTS) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < tolerance
