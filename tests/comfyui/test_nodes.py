"""The nodes in a real ComfyUI: what they compute, how they get on with core's nodes, what they say to bad input."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from comfy_host import REPO, ComfyServer, ExecutionError, Interrupted, Progress, graph_to_prompt
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.presets import EMBEDDED
from eam_core.weight_files import read_weights, save_weights

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


@pytest.fixture
def graph(server: ComfyServer) -> Graph:
    return Graph(server)


@pytest.fixture(scope="session")
def models(server: ComfyServer) -> Path:
    """ComfyUI's own folders of weights."""
    folder = server.work_dir / "models"
    for kind in ("checkpoints", "diffusion_models", "loras", "model_patches"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def photos(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two small pictures of 32 x 24 pixels in the input folder."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:24, 0:32]
    for name, phase in (("one", 0.0), ("two", 2.0)):
        waves = [np.sin(x / period + phase) * np.cos(y / (period + 1)) for period in (3, 5, 9)]
        pixels = np.stack(waves, axis=-1) * 60 + (x + y)[..., None] + 90
        path = folder / f"{name}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        server.upload_image(path)
    yield


def read(server: ComfyServer, found: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(server.fetch(found))).convert("RGB")).astype(float)


def photo(graph: Graph, name: str = "one") -> Any:
    return graph.add("LoadImage", image=f"{name}.png")[0]


def applied(graph: Graph, **changes: Any) -> Node:
    return graph.apply(photo(graph), graph.load(), **changes)


def fresh(server: ComfyServer) -> Graph:
    """Return an empty graph after ComfyUI forgot all results and unloaded all models."""
    requests.post(
        f"{server.url}/free", json={"free_memory": True, "unload_models": True}, timeout=60
    ).raise_for_status()
    return Graph(server)


# The whole way


def test_example_workflow_restores_a_photo(server: ComfyServer, tmp_path: Path) -> None:
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


# Sampling


def test_core_sampler_and_one_tile_give_the_same(graph: Graph) -> None:
    node = applied(graph)
    by_core = graph.latents(graph.k_sampler(node, cfg=2.0)[0])
    assert torch.equal(graph.latents(graph.tiled_sampler(node, cfg=2.0)[0]), by_core)
    assert by_core.shape == (1, 16, 12, 16) and by_core.isfinite().all()


@pytest.mark.parametrize("num_variants", [1, 2])
def test_tile_batch_changes_nothing(graph: Graph, num_variants: int) -> None:
    node = applied(graph)
    latent = graph.add("RepeatLatentBatch", samples=node[3], amount=num_variants)[0]
    one, four, untiled = (
        graph.latents(graph.tiled_sampler(node, latent=latent, cfg=2.0, **tiling)[0])
        for tiling in (TILED, TILED | {"tile_batch": 4}, {})
    )
    assert len(one) == num_variants
    assert torch.allclose(one, four, atol=1e-4)
    assert not torch.allclose(one, untiled, atol=1e-2)


@pytest.mark.parametrize("kind", ["sampler_name", "scheduler"])
def test_every_sampler_and_scheduler_works(graph: Graph, kind: str) -> None:
    node = applied(graph)
    options = graph.server.object_info()["EAM_TiledSampler"]["input"]["required"][kind][1]["options"]
    assert len(options) > 5
    saved = {
        name: graph.add(
            "SaveLatent",
            samples=graph.tiled_sampler(node, start_sigma=0.6, **{"steps": 3, kind: name})[0],
            filename_prefix=name,
        )
        for name in options
    }
    outputs = graph.server.run(graph.prompt)
    for name, node_id in saved.items():
        found = outputs[node_id]["latents"][0]
        path = graph.server.work_dir / "output" / found["subfolder"] / found["filename"]
        assert load_file(path)["latent_tensor"].isfinite().all(), name


@pytest.mark.parametrize(("scheduler", "start_sigma"), [("sgm_uniform", 0.5005), ("simple", 0.5)])
def test_start_sigma_is_cores_denoise_in_other_words(graph: Graph, scheduler: str, start_sigma: float) -> None:
    node = applied(graph)
    expected = graph.latents(graph.k_sampler(node, scheduler=scheduler, denoise=0.5)[0])
    sampled = graph.tiled_sampler(node, scheduler=scheduler, start_sigma=start_sigma)
    assert torch.allclose(graph.latents(sampled[0]), expected, atol=1e-4)


def test_fidelity_pulls_towards_the_photo(graph: Graph) -> None:
    node = applied(graph)
    lr = graph.latents(node[3])
    free, faithful = (graph.latents(graph.tiled_sampler(node, fidelity=f, **TILED)[0]) for f in (0.0, 1.0))
    assert (faithful - lr).abs().mean() < 0.97 * (free - lr).abs().mean()


def test_cfg_end_changes_guidance_on_the_way(graph: Graph) -> None:
    # Both prompts are the same nothing here; the negative loses its picture, so that guidance has something to do.
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    bare = graph.add("CLIPTextEncode", text="", clip=loaded[1])[0]
    flat, falling, off = (
        graph.latents(graph.tiled_sampler(node, negative=bare, **scales)[0])
        for scales in ({"cfg": 3.0}, {"cfg": 3.0, "cfg_end": 1.0}, {"cfg": 1.0})
    )
    assert not torch.allclose(flat, falling, atol=1e-3)
    assert (falling - off).abs().mean() < (flat - off).abs().mean()


def test_interrupted_run_leaves_nothing_behind(server: ComfyServer) -> None:
    def build() -> tuple[Graph, Any]:
        graph = fresh(server)
        return graph, graph.tiled_sampler(applied(graph), steps=8, **TILED)[0]

    def stop(progress: Progress) -> None:
        if progress.node_type == "EAM_TiledSampler" and progress.value >= 3:
            assert progress.value < progress.maximum
            server.interrupt()

    graph, sampled = build()
    with pytest.raises(Interrupted):
        graph.latents(sampled, on_progress=stop)
    again = graph.latents(sampled)
    graph, sampled = build()
    assert torch.equal(graph.latents(sampled), again)


def test_progress_counts_steps_times_tiles(graph: Graph) -> None:
    seen: list[tuple[float, float]] = []

    def note(progress: Progress) -> None:
        if progress.node_type == "EAM_TiledSampler" and progress.maximum > 2:
            seen.append((progress.value, progress.maximum))

    # 16 x 12 latents in tiles of 8 with an overlap of 4: three by two tiles, two steps.
    graph.latents(graph.tiled_sampler(applied(graph), seed=11, **TILED)[0], on_progress=note)
    assert {maximum for _, maximum in seen} == {12}
    assert seen == sorted(seen) and seen[-1][0] == 12


# The control


def test_zero_control_is_the_base_exactly(graph: Graph, models: Path) -> None:
    assert EMBEDDED.control
    state = read_weights(EMBEDDED.control)
    zeroed = {key: value * 0 if ".img_out." in key else value for key, value in state.items()}
    save_weights(models / "model_patches" / "zero.safetensors", zeroed)
    loaded = graph.load(control="zero.safetensors")
    node = graph.apply(photo(graph), loaded)
    base = graph.latents(graph.k_sampler(node, model=loaded[0])[0])
    assert torch.equal(graph.latents(graph.k_sampler(node)[0]), base)
    assert not torch.allclose(graph.latents(graph.k_sampler(applied(graph))[0]), base, atol=1e-2)


def test_control_acts_only_in_its_range(graph: Graph) -> None:
    loaded = graph.load()

    def result(**changes: Any) -> Tensor:
        return graph.latents(graph.k_sampler(graph.apply(photo(graph), loaded, **changes))[0])

    whole, half, none = result(), result(end=0.25), result(start=1.0)
    assert torch.equal(result(control_scale=0.0), none)
    assert not torch.allclose(whole, half, atol=1e-3)
    assert not torch.allclose(half, none, atol=1e-3)


def test_second_control_replaces_the_first(graph: Graph) -> None:
    loaded = graph.load()
    first = graph.apply(photo(graph), loaded)
    second = graph.apply(photo(graph, "two"), loaded, model=first[0])
    alone = graph.latents(graph.k_sampler(graph.apply(photo(graph, "two"), loaded))[0])
    assert torch.equal(graph.latents(graph.k_sampler(second)[0]), alone)


def test_picture_of_the_other_is_not_mixed_in(graph: Graph) -> None:
    loaded = graph.load()
    batch = graph.add("ImageBatch", image1=photo(graph), image2=photo(graph, "two"))[0]
    swapped = graph.add("ImageBatch", image1=photo(graph), image2=photo(graph))[0]
    for tiling in ({}, TILED | {"tile_batch": 4}):
        both, twice, single = (
            graph.latents(graph.tiled_sampler(graph.apply(image, loaded), cfg=2.0, **tiling)[0])
            for image in (batch, swapped, photo(graph))
        )
        assert both.shape[0] == 2
        assert torch.allclose(both[:1], single, atol=1e-4)
        assert torch.allclose(both[:1], twice[:1], atol=1e-4)
        assert not torch.allclose(both[1:], twice[1:], atol=1e-2)


def test_sizes_are_multiples_of_eight_next_to_the_scale(graph: Graph) -> None:
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded, scale=3.25)  # 104 x 78: 13 x 10 latents, an odd number
    sampled = graph.tiled_sampler(node, **TILED)
    picture = graph.images(graph.add("VAEDecode", samples=sampled[0], vae=loaded[2])[0])[0]
    assert picture.shape == (80, 104, 3)
    assert graph.latents(graph.k_sampler(node)[0]).shape[2:] == (10, 13)


# Together with core's own nodes


def test_lora_on_the_base(graph: Graph, models: Path) -> None:
    name, generator = "diffusion_model.joint_blocks.0.x_block.attn.qkv", torch.Generator().manual_seed(0)
    shapes = {f"{name}.lora_up.weight": (768, 4), f"{name}.lora_down.weight": (4, 256)}
    lora = {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_file(lora, models / "loras" / "tiny.safetensors")
    loaded = graph.load()

    def with_lora(model: Any, strength: float) -> Node:
        clip = {"clip": loaded[1], "strength_clip": 1.0}
        return graph.add("LoraLoader", model=model, lora_name="tiny.safetensors", strength_model=strength, **clip)

    def before(strength: float) -> Tensor:
        changed = with_lora(loaded[0], strength)
        text = graph.add("CLIPTextEncode", text="", clip=changed[1])[0]
        node = graph.apply(photo(graph), loaded, model=changed[0], positive=text, negative=text)
        return graph.latents(graph.tiled_sampler(node)[0])

    node = graph.apply(photo(graph), loaded)
    after = graph.latents(graph.tiled_sampler(node, model=with_lora(node[0], 1.0)[0])[0])
    without = graph.latents(graph.tiled_sampler(node)[0])
    assert torch.equal(before(0.0), without)
    assert torch.equal(before(1.0), after)
    assert not torch.allclose(after, without, atol=1e-2)


def test_area_conditioning_crops_the_picture_too(graph: Graph) -> None:
    node = applied(graph)
    area = {"width": 64, "height": 64, "x": 64, "y": 32, "strength": 1.0}
    part = graph.add("ConditioningSetArea", conditioning=node[1], **area)[0]
    combined = graph.add("ConditioningCombine", conditioning_1=node[1], conditioning_2=part)[0]
    plain, by_core = (graph.latents(graph.k_sampler(node, positive=p)[0]) for p in (node[1], combined))
    changed = (plain - by_core).abs().amax(dim=(0, 1)) > 1e-3
    assert changed[4:12, 8:16].any()
    assert not torch.allclose(plain, by_core, atol=1e-3)


@pytest.mark.parametrize("tiling", [{}, TILED | {"tile_batch": 4}], ids=["untiled", "tiled"])
@pytest.mark.parametrize("kind", ["area", "mask"])
def test_area_and_mask_change_their_part_only(graph: Graph, kind: str, tiling: dict[str, Any]) -> None:
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    # A second conditioning without the picture: where it counts, the result differs.
    part = graph.add("CLIPTextEncode", text="", clip=loaded[1])[0]
    if kind == "area":
        area = {"width": 64, "height": 64, "x": 64, "y": 32, "strength": 1.0}
        part = graph.add("ConditioningSetArea", conditioning=part, **area)[0]
    else:
        mask = graph.add("SolidMask", value=0.0, width=128, height=96)[0]
        block = graph.add("SolidMask", value=1.0, width=64, height=64)[0]
        mask = graph.add("MaskComposite", destination=mask, source=block, x=64, y=32, operation="add")[0]
        limits = {"strength": 1.0, "set_cond_area": "default"}
        part = graph.add("ConditioningSetMask", conditioning=part, mask=mask, **limits)[0]
    combined = graph.add("ConditioningCombine", conditioning_1=node[1], conditioning_2=part)[0]
    plain, changed = (
        graph.latents(graph.tiled_sampler(node, positive=positive, steps=1, **tiling)[0])
        for positive in (node[1], combined)
    )
    # The area in latents: rows 4 to 12, columns 8 to 16.
    difference = (plain - changed).abs().amax(dim=(0, 1))
    assert (difference[5:, 9:] > 1e-3).all()
    difference[4:, 8:] = 0
    assert difference.max() < 1e-4


def test_conditioning_without_the_picture_runs_as_the_base(graph: Graph) -> None:
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    bare = graph.add("CLIPTextEncode", text="a prompt it cannot read", clip=loaded[1])[0]
    mixed = graph.latents(graph.k_sampler(node, positive=bare, negative=bare)[0])
    assert torch.equal(graph.latents(graph.k_sampler(node, model=loaded[0])[0]), mixed)


def test_noise_mask_keeps_what_it_covers(graph: Graph) -> None:
    node = applied(graph)
    left = graph.add("SolidMask", value=0.0, width=64, height=96)[0]
    right = graph.add("SolidMask", value=1.0, width=128, height=96)[0]
    mask = graph.add("MaskComposite", destination=right, source=left, x=0, y=0, operation="multiply")[0]
    latent = graph.add("SetLatentNoiseMask", samples=node[3], mask=mask)[0]
    start, result = graph.latents(node[3]), graph.latents(graph.tiled_sampler(node, latent=latent, **TILED)[0])
    assert torch.allclose(result[..., :7], start[..., :7], atol=1e-4)
    assert not torch.allclose(result[..., 9:], start[..., 9:], atol=1e-2)


def test_skip_layer_guidance_runs_beside_the_control(graph: Graph) -> None:
    node = applied(graph)
    settings = {"layers": "1", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0}
    skipping = graph.add("SkipLayerGuidanceSD3", model=node[0], **settings)[0]
    plain, guided = (graph.latents(graph.k_sampler(node, model=m, cfg=2.0)[0]) for m in (node[0], skipping))
    assert guided.isfinite().all() and not torch.allclose(plain, guided, atol=1e-3)


def test_model_of_another_loader(graph: Graph, models: Path) -> None:
    assert EMBEDDED.base
    shutil.copy(EMBEDDED.base, models / "diffusion_models" / "base.safetensors")
    loaded = graph.load()
    other = graph.add("UNETLoader", unet_name="base.safetensors", weight_dtype="default")[0]
    flow = graph.add("ModelSamplingSD3", model=other, shift=EMBEDDED.shift)[0]
    node = graph.apply(photo(graph), loaded, model=flow)
    expected = graph.latents(graph.k_sampler(graph.apply(photo(graph), loaded))[0])
    assert torch.equal(graph.latents(graph.k_sampler(node)[0]), expected)


# Pictures alone


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


# Bad input


def refused(graph: Graph, message: str, output: Any) -> None:
    graph.add("SaveLatent", samples=output, filename_prefix="never")
    with pytest.raises(ExecutionError, match=message):
        graph.server.run(graph.prompt)


@pytest.mark.parametrize("scale", [0, 100])
def test_scale_out_of_range(graph: Graph, scale: float) -> None:
    refused(graph, r"EAM_ApplyControl: .*scale", applied(graph, scale=scale)[3])


def test_picture_too_small(graph: Graph) -> None:
    picture = graph.add("EmptyImage", width=1, height=1, batch_size=1, color=0)[0]
    message = r"EAM_ApplyControl: the image: expected edges of 16 to 16384 pixels, got 1 x 1"
    refused(graph, message, graph.apply(picture, graph.load())[3])


def test_picture_too_large(graph: Graph) -> None:
    half = graph.add("EmptyImage", width=15000, height=16, batch_size=1, color=0)[0]
    joint = {"direction": "right", "match_image_size": True, "spacing_width": 0, "spacing_color": "white"}
    picture = graph.add("ImageStitch", image1=half, image2=half, **joint)[0]
    message = r"EAM_ApplyControl: the image: expected edges of 16 to 16384 pixels, got 30000 x 16"
    refused(graph, message, graph.apply(picture, graph.load())[3])


def test_control_of_another_size(graph: Graph, models: Path) -> None:
    small = ControlStream(ControlParams(depth=2, hidden_size=128))
    save_weights(models / "model_patches" / "small.safetensors", small.state_dict())
    node = graph.apply(photo(graph), graph.load(control="small.safetensors"))
    refused(graph, r"EAM_ApplyControl: expected control weights for this base .*small.*hidden_size 128", node[3])


CHECKPOINTS = {
    "sdxl.safetensors": "holds an SDXL model",
    "lora.safetensors": "holds a LoRA",
    "pickled.ckpt": "is a pickle",
    "pickled.pt": "is a pickle",
    "cut.safetensors": "truncated",
    "text.safetensors": "truncated or something else",
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_unusable_checkpoint(graph: Graph, models: Path, name: str) -> None:
    path = models / "checkpoints" / name
    if name == "sdxl.safetensors":
        save_file({"conditioner.embedders.1.model.ln_final.weight": torch.zeros(2)}, path)
    elif name == "lora.safetensors":
        save_file({"lora_unet_mid.lora_down.weight": torch.zeros(2)}, path)
    elif name.startswith("pickled"):
        torch.save({"weight": torch.zeros(2)}, path)
    elif name == "cut.safetensors":
        assert EMBEDDED.base
        path.write_bytes(EMBEDDED.base.read_bytes()[:-1000])
    else:
        path.write_text("not weights")
    loaded = graph.load(checkpoint=name)
    refused(graph, f"EAM_LoadModel: .*{CHECKPOINTS[name]}", graph.apply(photo(graph), loaded)[3])


def test_checkpoint_finds_its_control_or_says_what_is_missing(graph: Graph, models: Path) -> None:
    assert EMBEDDED.base and EMBEDDED.control
    prefixed = {f"model.diffusion_model.{key}": value for key, value in read_weights(EMBEDDED.base).items()}
    save_file(prefixed, models / "checkpoints" / "whole.safetensors")
    patches = models / "model_patches"
    for path in patches.glob("*.safetensors"):
        path.unlink()
    (patches / "junk.safetensors").write_text("not weights")
    vae = graph.load()[2]
    loaded = graph.load(checkpoint="whole.safetensors")
    text = graph.add("CLIPTextEncode", text="", clip=graph.load()[1])[0]
    others = {"vae": vae, "positive": text, "negative": text}

    def attempt() -> Tensor:
        attempted = Graph(graph.server)
        attempted.prompt = json.loads(json.dumps(graph.prompt))
        picture = photo(attempted)
        node = attempted.add(
            "EAM_ApplyControl",
            **others | {"model": loaded[0], "control": loaded[3], "image": picture},
            scale=4.0, control_scale=1.0, start=0.0, end=1.0,
        )  # fmt: skip
        return attempted.latents(attempted.tiled_sampler(node)[0])

    with pytest.raises(ExecutionError, match=r"EAM_LoadModel: expected one file of control weights .*found none"):
        attempt()
    shutil.copy(EMBEDDED.control, patches / "fits.safetensors")
    assert attempt().isfinite().all()
    shutil.copy(EMBEDDED.control, patches / "fits_too.safetensors")
    with pytest.raises(ExecutionError, match=r"found fits.safetensors, fits_too.safetensors; choose one"):
        fresh(graph.server)
        attempt()
    for path in patches.glob("*.safetensors"):
        path.unlink()


def test_control_in_a_base_like_sd35_medium(graph: Graph, models: Path) -> None:
    # Root-mean-square norms and a second image attention; random weights, as only the way through matters.
    torch.manual_seed(0)
    sizes = {"depth": 2, "hidden_size": 128, "qk_norm": True}
    base = MMDiT(MMDiTParams(**sizes, context_size=64, pooled_size=64, dual_attention_blocks=(0,)))
    control = ControlStream(ControlParams(**sizes, lr_attention="self"))
    save_weights(models / "diffusion_models" / "like_sd35.safetensors", base.state_dict())
    save_weights(models / "model_patches" / "like_sd35.safetensors", control.state_dict())
    loaded = graph.load(control="like_sd35.safetensors")
    model = graph.add("UNETLoader", unet_name="like_sd35.safetensors", weight_dtype="default")[0]
    node = graph.apply(photo(graph), loaded, model=model)
    by_control = graph.latents(graph.tiled_sampler(node, **TILED)[0])
    base_alone = graph.latents(graph.tiled_sampler(node, model=model, **TILED)[0])
    assert by_control.isfinite().all()
    assert not torch.allclose(by_control, base_alone, atol=1e-2)


def test_latents_of_another_size(graph: Graph) -> None:
    empty = graph.add("EmptySD3LatentImage", width=96, height=80, batch_size=1)[0]
    message = "expected latents of 16 x 12 .* got 12 x 10; connect its LATENT"
    with pytest.raises(ExecutionError, match=f"KSampler: {message}"):
        graph.latents(graph.k_sampler(applied(graph), latent_image=empty)[0])
    graph = Graph(graph.server)
    empty = graph.add("EmptySD3LatentImage", width=96, height=80, batch_size=1)[0]
    refused(graph, f"EAM_TiledSampler: {message}", graph.tiled_sampler(applied(graph), latent=empty, **TILED)[0])


def test_picture_larger_than_the_position_table(graph: Graph) -> None:
    strip = graph.add("EmptyImage", width=136, height=16, batch_size=1, color=0x336699)[0]
    node = graph.apply(strip, graph.load(), scale=8.0)
    refused(graph, r"KSampler: expected latents of at most 128 x 128 .* use EAM_TiledSampler", graph.k_sampler(node)[0])


def test_wrong_vae(graph: Graph) -> None:
    loaded = graph.load()
    other = graph.add("VAELoader", vae_name="pixel_space")[0]
    refused(graph, r"EAM_ApplyControl: expected a VAE with 16", graph.apply(photo(graph), loaded, vae=other)[3])


def test_tile_too_small_and_guidance_without_a_picture(graph: Graph) -> None:
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    with pytest.raises(ExecutionError, match=r"EAM_TiledSampler: expected a tile of at least"):
        graph.latents(graph.tiled_sampler(node, tile=32)[0])
    graph = Graph(graph.server)
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    bare = graph.add("CLIPTextEncode", text="", clip=loaded[1])[0]
    refused(graph, r"EAM_TiledSampler: .*fidelity", graph.tiled_sampler(node, positive=bare, fidelity=0.5)[0])
