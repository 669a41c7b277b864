"""EAM_ApplyControl in a real ComfyUI: where a control acts, on which picture, and around which base."""

from pathlib import Path
from typing import Any

import torch
from graphs import TILED, Graph, applied, photo
from torch import Tensor

from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.presets import EMBEDDED
from eam_core.weight_files import read_weights, save_weights


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
    (models / "model_patches" / "zero.safetensors").unlink()  # other files' tests look for the one that fits


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
