"""The nodes in a real ComfyUI together with core's own."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import TILED, Graph, Node, applied, photo
from safetensors.torch import save_file
from torch import Tensor

from eam_core.presets import EMBEDDED


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
