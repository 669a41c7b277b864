"""The nodes in a real ComfyUI: the whole way of a photo, and what works on pictures alone."""

import json
from pathlib import Path

import numpy as np
from comfy_host import REPO, ComfyServer, graph_to_prompt
from graphs import Graph, photo, read
from PIL import Image


def test_example_workflow_restores_a_photo(server: ComfyServer, photos: None, tmp_path: Path) -> None:
    workflow = json.loads((REPO / "example_workflows" / "eam_upscale.json").read_text())
    prompt = graph_to_prompt(workflow, server.object_info())
    kinds = {node["class_type"]: (node_id, node["inputs"]) for node_id, node in prompt.items()}
    kinds["LoadImage"][1]["image"] = "one.png"
    outputs = server.run(prompt)

    restored = read(server, outputs[kinds["SaveImage"][0]]["images"][0])
    before, after = (outputs[kinds["EAM_Compare"][0]][key] for key in ("a_images", "b_images"))
    assert restored.shape == (96, 128, 3)
    assert read(server, before[0]).shape == (24, 32, 3)
    assert np.array_equal(read(server, after[0]), restored)

    small = Image.open(server.work_dir / "input" / "one.png")
    bicubic = np.asarray(small.resize((128, 96), Image.Resampling.BICUBIC)).astype(float)
    noise = np.random.default_rng(0).integers(0, 256, bicubic.shape)
    assert restored.std() > 20
    assert np.abs(restored - bicubic).mean() < 0.4 * np.abs(noise - bicubic).mean()


def test_embedded_vae_serves_cores_own_nodes(graph: Graph) -> None:
    vae = graph.load()[2]
    scaled = graph.add(
        "ImageScale", image=photo(graph), upscale_method="bicubic", width=128, height=96, crop="disabled"
    )
    encoded = graph.add("VAEEncode", pixels=scaled[0], vae=vae)
    tiles = {"tile_size": 64, "overlap": 32, "temporal_size": 64, "temporal_overlap": 8}
    original = graph.images(scaled[0])[0]
    whole = graph.images(graph.add("VAEDecode", samples=encoded[0], vae=vae)[0])[0]
    in_tiles = graph.images(graph.add("VAEDecodeTiled", samples=encoded[0], vae=vae, **tiles)[0])[0]
    assert np.abs(whole - original).mean() < 12
    assert np.abs(in_tiles - whole).mean() < 2


def test_degrade_is_repeatable_and_shrinks(graph: Graph) -> None:
    settings = {"scale": 2, "blur": 0.5, "noise": 10.0, "jpeg_quality": 60}
    first, again, other = (
        graph.images(graph.add("EAM_Degrade", image=photo(graph), seed=seed, **settings)[0])[0] for seed in (1, 1, 2)
    )
    assert first.shape == (12, 16, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_color_fix_takes_colors_from_a_smaller_reference(graph: Graph) -> None:
    grey = graph.add("EmptyImage", width=128, height=96, batch_size=2, color=0x808080)[0]

    def result(method: str) -> list[np.ndarray]:
        return graph.images(graph.add("EAM_ColorFix", image=grey, reference=photo(graph), method=method)[0])

    reference, untouched = graph.images(photo(graph))[0], result("none")
    assert len(untouched) == 2 and all((picture == 128).all() for picture in untouched)
    for method in ("wavelet", "adain"):
        for picture in result(method):
            assert np.abs(picture.mean(axis=(0, 1)) - reference.mean(axis=(0, 1))).max() < 4
