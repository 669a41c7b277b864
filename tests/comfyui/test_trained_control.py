"""What train_psi_dit exports, loaded as it is by EAM_LoadModel in a real ComfyUI: the library's picture comes out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_host import REPO, ComfyServer, graph_to_prompt
from PIL import Image

from eam_core.images import load_image, resize
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED
from eam_core.restore_config import RestoreConfig
from train.options import parse_config
from train.recipes import RECIPES
from train.train_psi_dit import train_control

TOLERANCE = 2 / 255  # the graph's result is a PNG; sums run in another order


@pytest.mark.parametrize("family", ["psi_dit", "controlnet"])
def test_an_exported_control_restores_in_graph_and_library_alike(server: ComfyServer, tmp_path: Path, family: str):
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(6):
        pixels = torch.randint(0, 256, (96, 96, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(np.asarray(pixels)).save(photos / f"{index}.png")
    options = ["--data", str(photos), "--base", str(EMBEDDED.base), "--autoencoder", str(EMBEDDED.autoencoder)]
    options += ["--run-dir", str(tmp_path / "run"), "--family", family, "--lr", "1e-2"]
    train_control(parse_config(RECIPES, description="", argv=["debug", *options]))

    exported = tmp_path / "run" / "control.safetensors"
    installed = server.work_dir / "models" / "model_patches" / f"trained_{family}.safetensors"
    installed.parent.mkdir(parents=True, exist_ok=True)
    installed.write_bytes(exported.read_bytes())
    photo = tmp_path / f"trained_{family}.png"
    pixels = resize(load_image(REPO / "eam_core" / "assets" / "sample_lr.png").rgb, (64, 64))[0].permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(photo)
    server.upload_image(photo)

    prompt = graph_to_prompt(
        json.loads((REPO / "example_workflows/eam_upscale.json").read_text()), server.object_info()
    )
    changes = {"LoadImage": {"image": photo.name}, "EAM_LoadModel": {"control": installed.name}}
    for node in prompt.values():
        node["inputs"] |= changes.get(node["class_type"], {})
        node["inputs"] |= {"seed": 5} if node["class_type"] == "EAM_TiledSampler" else {}
    outputs = server.run(prompt)
    installed.unlink()
    saved = next(key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    result = tmp_path / "graph.png"
    result.write_bytes(server.fetch(outputs[saved]["images"][0]))

    assert EMBEDDED.base and EMBEDDED.autoencoder
    config = RestoreConfig.from_spec(EMBEDDED, scale=4, seed=5)
    files = {"base": EMBEDDED.base, "autoencoder": EMBEDDED.autoencoder}
    image = load_image(photo).rgb
    ours = Restorer.from_files(**files, control=exported).restore(image, config)
    shipped = Restorer.embedded().restore(image, config)
    assert (load_image(result).rgb - ours).abs().max() <= TOLERANCE
    assert (ours - shipped).abs().max() > 10 * TOLERANCE, "the trained control was not the one that ran"
