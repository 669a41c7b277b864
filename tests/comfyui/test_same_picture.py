"""The graph and the library make the same picture for the same seed."""

import json

import numpy as np
import torch
from comfy_host import REPO, ComfyServer, graph_to_prompt
from PIL import Image

from eam_core.images import load_image, resize
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED
from eam_core.restore_config import RestoreConfig

TOLERANCE = 2 / 255  # the graph's result is a PNG; sums run in another order


def test_example_workflow_equals_the_library(server: ComfyServer, tmp_path) -> None:
    """Several tiles, non-square, another seed than the default."""
    photo = load_image(REPO / "eam_core" / "assets" / "sample_lr.png").rgb
    source = tmp_path / "photo.png"
    pixels = resize(photo, (72, 96))[0].permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(source)

    prompt = graph_to_prompt(
        json.loads((REPO / "example_workflows/eam_upscale.json").read_text()), server.object_info()
    )
    name = server.upload_image(source)
    for node in prompt.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = name
        if node["class_type"] == "EAM_TiledSampler":
            node["inputs"]["seed"] = 5
    outputs = server.run(prompt)
    saved = next(key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    result = tmp_path / "graph.png"
    result.write_bytes(server.fetch(outputs[saved]["images"][0]))
    from_graph = load_image(result).rgb

    config = RestoreConfig.from_spec(EMBEDDED, scale=4, seed=5)
    with torch.no_grad():
        from_library = Restorer.embedded().restore(load_image(source).rgb, config)
    assert from_graph.shape == from_library.shape == (1, 3, 288, 384)
    assert np.abs((from_graph - from_library).numpy()).max() < TOLERANCE
