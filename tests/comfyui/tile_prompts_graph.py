"""What the tests of tile prompts share: a ComfyUI with a random stand-in whose text matters, and graphs around it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import ComfyServer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from eam_core.checkpoint import IMAGE_PROMPT_PREFIX
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.image_prompt import ImagePrompt, ImagePromptParams
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.tiling import TileGrid
from eam_core.weight_files import save_weights

SIZE = {"depth": 2, "hidden_size": 128}
IMAGE_SIZE = 32
TILE, OVERLAP = 64, 32  # pixels
SIDE = 16  # latents of a result: 3 x 3 tiles


@contextmanager
def tile_prompts_host(folder: Path) -> Iterator[ComfyServer]:
    """Start a ComfyUI in a folder, with the stand-ins and two pictures in it."""
    (folder / "custom_nodes").mkdir()
    shutil.copy(Path(__file__).with_name("tile_prompts_pack.py"), folder / "custom_nodes")
    with pytest.MonkeyPatch.context() as environment:
        # For so small a model, threads on busy cores only wait for each other.
        environment.setenv("OMP_NUM_THREADS", "1")
        with ComfyServer(folder) as running:
            save_stand_ins(folder / "models")
            for side in (32, 96):
                coarse = np.random.default_rng(side).integers(0, 256, (4, 4, 3)).astype(np.uint8)
                path = folder / f"{side}.png"
                Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
                running.upload_image(path)
            yield running


def save_stand_ins(models: Path) -> None:
    """Write a random base whose text matters, and a random control with an image prompt for it."""
    torch.manual_seed(0)
    base = MMDiT(MMDiTParams(**SIZE, context_size=64, pooled_size=64))
    control = ControlStream(ControlParams(**SIZE))
    prompt = ImagePrompt(ImagePromptParams(**SIZE, image_size=IMAGE_SIZE))
    for module in (base, control, prompt):
        for tensor in module.state_dict().values():
            tensor.normal_(std=tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.1)
    state = {IMAGE_PROMPT_PREFIX + key: value for key, value in prompt.state_dict().items()}
    # One that hardly looks at the latents: each text shifts its tile evenly, which is what shows seams best.
    scales = {"x_embedder.proj.weight": 0.02, "pos_embed": 0.02, "final_layer.linear.weight": 10.0}
    blind = {key: value * scales.get(key, 1.0) for key, value in base.state_dict().items()}
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        blind[key] = blind[key].unflatten(0, (4, 16)).mean(0).repeat(4, *[1] * (blind[key].ndim - 1))
    files = {"diffusion_models/random": base.state_dict(), "diffusion_models/blind": blind}
    for name, weights in (files | {"model_patches/random": control.state_dict() | state}).items():
        path = models / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, weights)


class Graph:
    """A prompt in the making: the stand-in with its control on a picture."""

    def __init__(self, host: ComfyServer, base: str = "random", side: int = 32, **changes: Any) -> None:
        self.host, self.prompt = host, {}
        loaded = self.add("EAM_LoadModel", checkpoint="embedded (tiny, no text)", control="random.safetensors")
        self.vae, self.control, self.embedded_clip = [loaded, 2], [loaded, 3], [loaded, 1]
        self.model = self.link("UNETLoader", unet_name=f"{base}.safetensors", weight_dtype="default")
        self.clip = self.link("TextCLIP", width=64)
        self.image = self.link("LoadImage", image=f"{side}.png")
        self.control_numbers = {"scale": 4.0, "control_scale": 1.0, "start": 0.0, "end": 1.0} | changes

    def add(self, kind: str, **inputs: Any) -> str:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        return node

    def link(self, kind: str, **inputs: Any) -> Any:
        return [self.add(kind, **inputs), 0]

    def text(self, text: str) -> Any:
        return self.link("CLIPTextEncode", text=text, clip=self.clip)

    def combined(self, text: str, in_area: str) -> Any:
        """Two prompts, one of them in an area with a strength and until half of the sampling."""
        area = {"width": 64, "height": 64, "x": 64, "y": 32, "strength": 3.0}
        part = self.link("ConditioningSetArea", conditioning=self.text(in_area), **area)
        part = self.link("ConditioningSetTimestepRange", conditioning=part, start=0.0, end=0.5)
        return self.link("ConditioningCombine", conditioning_1=self.text(text), conditioning_2=part)

    def tiles(self, tiles: list[tuple[Any, str]], clip: Any = None) -> Any:
        captions = self.link("TileCaptions", tiles=json.dumps(tiles))
        return self.link("EAM_EncodeTileCaptions", clip=clip or self.clip, tile_captions=captions)

    def sample(self, positive: Any, tiles: Any = None, strength: float = 0.5, log: Any = "", **changes: Any) -> Tensor:
        """Run one sampling; `tiles` are places with texts, or a link."""
        links = {"positive": positive, "negative": self.text("none of it"), "vae": self.vae, "control": self.control}
        applied = self.add("EAM_ApplyControl", model=self.model, image=self.image, **links, **self.control_numbers)
        model = self.link("Watched", model=[applied, 0], log=str(log)) if log else [applied, 0]
        inputs = {"model": model, "positive": [applied, 1], "negative": [applied, 2], "latent": [applied, 3]}
        numbers: dict[str, Any] = {"seed": 3, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "fidelity": 0.0}
        numbers |= {"scheduler": "sgm_uniform", "start_sigma": 1.0, "tile_batch": 1, "tile": TILE, "overlap": OVERLAP}
        numbers["blend_every_step"] = True  # as it is with prompts of tiles, so that runs without can be compared
        if tiles is not None:
            linked = self.tiles(tiles) if not tiles or isinstance(tiles[0], tuple) else tiles
            inputs |= {"tile_positive": linked, "tile_strength": strength}
        return self.latents(self.link("EAM_TiledSampler", **inputs, **numbers | changes))

    def latents(self, latent: Any) -> Tensor:
        saved = self.add("SaveLatent", samples=latent, filename_prefix="test")
        found = self.host.run(self.prompt)[saved]["latents"][0]
        return load_file(self.host.work_dir / "output" / found["subfolder"] / found["filename"])["latent_tensor"]


def run(host: ComfyServer, text: str, tiles: Any = None, strength: float = 0.5, **changes: Any) -> Tensor:
    """Sample the stand-in from a fresh graph."""
    graph = Graph(host, **changes.pop("graph", {}))
    return graph.sample(graph.text(text), tiles, strength, **changes)


def calls(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def grid(side: int) -> TileGrid:
    return TileGrid(height=side, width=side, tile=TILE // 8, overlap=OVERLAP // 8)


def places(grid: TileGrid) -> list[tuple[float, float, float, float]]:
    """Return a grid's boxes as captions have them."""
    return [
        (left / grid.width, top / grid.height, (left + wide) / grid.width, (top + tall) / grid.height)
        for top, left, tall, wide in grid.boxes
    ]
