"""What the tests of tiled runs share: a ComfyUI with random stand-ins of every lr_attention, and graphs around them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tile_prompts_graph
import torch
from comfy_host import ComfyServer
from graphs import log_since, log_size
from PIL import Image
from torch import Tensor

from eam_core.model.control import ControlParams, ControlStream
from eam_core.weight_files import save_weights

PACKS = ("probe_pack.py", "tile_prompts_pack.py", "tile_runs_pack.py")
PLENTY = 2**30


@contextmanager
def tile_runs_host(folder: Path) -> Iterator[ComfyServer]:
    """Start a ComfyUI in a folder, with the stand-ins and pictures of 32 and 80 pixels in it."""
    (folder / "custom_nodes").mkdir()
    for pack in PACKS:
        shutil.copy(Path(__file__).with_name(pack), folder / "custom_nodes")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with ComfyServer(folder) as running:
            tile_prompts_graph.save_stand_ins(folder / "models")
            models = folder / "models"
            shutil.copy(models / "diffusion_models/random.safetensors", models / "diffusion_models/half.safetensors")
            for kind in ("self", "cross", "joint"):
                torch.manual_seed(1)
                control = ControlStream(ControlParams(**tile_prompts_graph.SIZE, lr_attention=kind))
                for tensor in control.state_dict().values():
                    tensor.normal_(std=tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.1)
                save_weights(models / "model_patches" / f"{kind}.safetensors", control.state_dict())
            for side in (32, 80):
                torch.manual_seed(side)
                coarse = torch.randint(0, 256, (5, 5, 3), dtype=torch.uint8).numpy()
                path = folder / f"{side}.png"
                Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
                running.upload_image(path)
            yield running


class Run:
    """One sampling: its result and everything the pack wrote down about it.

    Both prompts have three words, so that core runs them in one pass.
    """

    def __init__(self, host: ComfyServer, control: str = "self", base: str = "random", side: int = 32, **changes: Any):
        self.host, self.control, self.base, self.side = host, control, base, side
        self.changes = {"cfg": 2.0, "blend_every_step": True} | changes
        self.passes: list[dict[str, Any]] = []
        self.remembered: list[int] = []
        self.said = ""

    def __call__(self, fails: dict[str, Any] | None = None, most: int = PLENTY, **changes: Any) -> Tensor:
        """Sample; `most` bytes may be kept of LR latents."""
        folder = self.host.work_dir
        logs = folder / "passes.log", folder / "remembered.log"
        for log in logs:
            log.write_text("")
        given = self.changes | changes
        graph = tile_prompts_graph.Graph(self.host, self.base, self.side, **given.pop("graph", {}))
        graph.prompt["1"]["inputs"]["control"] = f"{self.control}.safetensors"
        if self.base == "half":
            graph.model = graph.link("TestHalf", model=graph.model)
        for node in given.pop("patches", ()):
            graph.model = graph.link(node[0], model=graph.model, **node[1])
        graph.model = graph.link("TestTrouble", model=graph.model, log=str(logs[0]), fails=json.dumps(fails or {}))
        graph.model = graph.link("TestRemembering", model=graph.model, log=str(logs[1]), most=most)
        tiles = given.pop("tiles", None)
        before = log_size(self.host)
        try:
            return graph.sample(graph.text(given.pop("text", "all of it")), tiles, **given)
        finally:
            self.said = log_since(self.host, before)
            self.passes = [json.loads(line) for line in logs[0].read_text().splitlines()]
            self.remembered = [json.loads(line)["remembered"] for line in logs[1].read_text().splitlines()]

    def sides(self) -> list[int]:
        return [one["side"] for one in self.passes]


def error(one: Tensor, other: Tensor) -> float:
    """Return how far two results are apart, in shares of the second."""
    return ((one - other).norm() / other.norm()).item()
