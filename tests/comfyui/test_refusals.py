"""What the nodes say to bad input in a real ComfyUI."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from comfy_host import ExecutionError
from graphs import TILED, Graph, applied, fresh, photo, refused
from safetensors.torch import save_file
from torch import Tensor

from eam_core.model.control import ControlParams, ControlStream
from eam_core.presets import EMBEDDED
from eam_core.weight_files import read_weights, save_weights


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
    with pytest.raises(ExecutionError, match=r"EAM_TiledSampler: tile: expected 0 or at least 64 pixels, got 32"):
        graph.latents(graph.tiled_sampler(node, tile=32)[0])
    graph = Graph(graph.server)
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    bare = graph.add("CLIPTextEncode", text="", clip=loaded[1])[0]
    refused(graph, r"EAM_TiledSampler: .*fidelity", graph.tiled_sampler(node, positive=bare, fidelity=0.5)[0])
