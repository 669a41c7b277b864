"""What tests of this folder share: a prompt in the making with the embedded model, and small helpers around it."""

import io
from typing import Any

import numpy as np
import pytest
from caption_graph import free
from comfy_host import ComfyServer, ExecutionError
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

LOADED = {"checkpoint": "embedded (tiny, no text)", "control": "auto"}
SAMPLING = {
    "seed": 3,
    "steps": 2,
    "cfg": 1.0,
    "sampler_name": "euler",
    "scheduler": "sgm_uniform",
    "start_sigma": 1.0,
    "fidelity": 0.0,
    "tile": 0,
    "overlap": 0,
    "tile_batch": 1,
}
TILED = {"tile": 64, "overlap": 32}


class Node(str):
    """A node's id; node[slot] is a link to one of its outputs."""

    def __getitem__(self, slot: Any) -> Any:
        return [str(self), slot]


class Graph:
    """A prompt in the making."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self.prompt: dict[str, Any] = {}

    def add(self, kind: str, **inputs: Any) -> Node:
        node = Node(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        return node

    def load(self, **changes: Any) -> Node:
        return self.add("EAM_LoadModel", **LOADED | changes)

    def apply(self, image: Any, loaded: Node, *, model: Any = None, **changes: Any) -> Node:
        text = self.add("CLIPTextEncode", text="", clip=loaded[1])[0]
        inputs = {"positive": text, "negative": text, "vae": loaded[2], "control": loaded[3], "image": image}
        numbers = {"scale": 4.0, "control_scale": 1.0, "start": 0.0, "end": 1.0}
        return self.add("EAM_ApplyControl", model=model or loaded[0], **inputs | numbers | changes)

    def tiled_sampler(self, applied: Node, **changes: Any) -> Node:
        links = {"model": applied[0], "positive": applied[1], "negative": applied[2], "latent": applied[3]}
        return self.add("EAM_TiledSampler", **links | SAMPLING | changes)

    def k_sampler(self, applied: Node, **changes: Any) -> Node:
        links = {"model": applied[0], "positive": applied[1], "negative": applied[2], "latent_image": applied[3]}
        numbers = {key: SAMPLING[key] for key in ("seed", "steps", "cfg", "sampler_name", "scheduler")}
        return self.add("KSampler", **links | numbers | {"denoise": 1.0} | changes)

    def latents(self, sampled: Any, **run: Any) -> Tensor:
        """Run the graph and return one LATENT."""
        saved = self.add("SaveLatent", samples=sampled, filename_prefix="test")
        found = self.server.run(self.prompt, **run)[saved]["latents"][0]
        return load_file(self.server.work_dir / "output" / found["subfolder"] / found["filename"])["latent_tensor"]

    def images(self, image: Any) -> list[np.ndarray]:
        """Run the graph and return the pictures of one IMAGE, [H, W, 3] in [0, 255]."""
        saved = self.add("PreviewImage", images=image)
        return [read(self.server, found) for found in self.server.run(self.prompt)[saved]["images"]]


def read(server: ComfyServer, found: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(server.fetch(found))).convert("RGB")).astype(float)


def photo(graph: Graph, name: str = "one") -> Any:
    return graph.add("LoadImage", image=f"{name}.png")[0]


def applied(graph: Graph, **changes: Any) -> Node:
    return graph.apply(photo(graph), graph.load(), **changes)


def fresh(server: ComfyServer) -> Graph:
    """Return an empty graph after ComfyUI forgot all results and unloaded all models."""
    free(server)
    return Graph(server)


def refused(graph: Graph, message: str, output: Any) -> None:
    graph.add("SaveLatent", samples=output, filename_prefix="never")
    with pytest.raises(ExecutionError, match=message):
        graph.server.run(graph.prompt)


def log_size(server: ComfyServer) -> int:
    return len(server.log_path.read_text(errors="replace"))


def log_since(server: ComfyServer, start: int) -> str:
    return server.log_path.read_text(errors="replace")[start:]
