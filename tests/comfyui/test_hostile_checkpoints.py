"""Checkpoints from strangers in a real ComfyUI: what core would unpickle, or build larger than the file, is refused."""

from pathlib import Path

import pytest
import torch
from graphs import Graph, photo, refused
from safetensors.torch import save_file

from eam_core.presets import EMBEDDED
from eam_core.weight_files import read_weights


def load(graph: Graph, name: str, message: str) -> None:
    refused(graph, f"EAM_LoadModel: .*{message}", graph.apply(photo(graph), graph.load(checkpoint=name))[3])


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".bin"])
def test_safetensors_under_the_name_of_a_pickle(graph: Graph, models: Path, ending: str) -> None:
    # Core opens these by torch.load, whatever we have read in them; a file can be both at once.
    assert EMBEDDED.base
    name = f"both{ending}"
    (models / "checkpoints" / name).write_bytes(EMBEDDED.base.read_bytes())
    try:
        load(graph, name, r"expected a checkpoint whose name ends in \.safetensors, got both")
    finally:
        (models / "checkpoints" / name).unlink()


def test_a_width_that_asks_for_more_blocks_than_there_are(graph: Graph, models: Path) -> None:
    # Core takes the depth from the width: 1000 blocks of 64,000 channels would be 10^14 numbers.
    assert EMBEDDED.base
    state = {f"model.diffusion_model.{key}": value for key, value in read_weights(EMBEDDED.base).items()}
    state["model.diffusion_model.x_embedder.proj.weight"] = torch.zeros(64_000, 16, 2, 2)
    path = models / "checkpoints" / "wide.safetensors"
    save_file(state, path)
    try:
        load(graph, path.name, r"got 64000 channels, \d+ blocks")
    finally:
        path.unlink()
