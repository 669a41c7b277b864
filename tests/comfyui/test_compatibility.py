"""What people put around the nodes, part one: weights, models and VAEs. docs/COMPATIBILITY.md lists the rows."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import REPO, ExecutionError
from graphs import TILED, Graph, Node, log_since, log_size, photo
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from eam_core.checkpoint import build_autoencoder
from eam_core.flow import schedule
from eam_core.images import load_image, resize
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.dit4sr import DiT4SR, DiT4SRParams
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.presets import DIT4SR, EMBEDDED, SD3
from eam_core.weight_files import read_weights, save_weights

SAME = 1e-4  # latents are about 1; the same sum in another order
SLOW = pytest.mark.skipif(not os.environ.get("EAM_SLOW"), reason="minutes of a C++ compiler; set EAM_SLOW=1")
QKV = "joint_blocks.0.x_block.attn.qkv"


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    assert EMBEDDED.base
    return {key: value.float() for key, value in read_weights(EMBEDDED.base).items()}


def randomized(module: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights of a random stand-in, small enough for its outputs to stay about 1."""
    generator = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for value in state.values():
        std = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
        value.copy_(std * torch.randn(value.shape, generator=generator))
    return state


def loaded_by_core(graph: Graph, models: Path, name: str, state: dict[str, Tensor], dtype: str = "default") -> Node:
    """A MODEL that core loads from models/diffusion_models, on the embedded schedule."""
    save_weights(models / "diffusion_models" / f"{name}.safetensors", state)
    model = graph.add("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype=dtype)[0]
    return graph.add("ModelSamplingSD3", model=model, shift=EMBEDDED.shift)


def controlled(graph: Graph, model: Any = None, **changes: Any) -> Tensor:
    """What a MODEL under the embedded control makes of the photo."""
    node = graph.apply(photo(graph), graph.load(), model=model)
    return graph.latents(graph.k_sampler(node, **changes)[0])


# Weights of the base


@pytest.mark.parametrize("order", ["before", "after"])
def test_lora_is_the_merged_base(graph: Graph, models: Path, base: dict[str, Tensor], order: str) -> None:
    generator = torch.Generator().manual_seed(1)
    up, down = (0.3 * torch.randn(shape, generator=generator) for shape in ((768, 4), (4, 256)))
    named = {f"diffusion_model.{QKV}.lora_up.weight": up, f"diffusion_model.{QKV}.lora_down.weight": down}
    save_file(named, models / "loras" / "matrix.safetensors")
    merged = base | {f"{QKV}.weight": base[f"{QKV}.weight"] + 0.5 * up @ down}
    expected = controlled(graph, loaded_by_core(graph, models, "merged", merged)[0])
    plain = controlled(graph)

    lora = {"lora_name": "matrix.safetensors", "strength_model": 0.5}
    loaded = graph.load()
    model = graph.add("LoraLoaderModelOnly", model=loaded[0], **lora)[0] if order == "before" else loaded[0]
    node = graph.apply(photo(graph), loaded, model=model)
    if order == "after":
        model = graph.add("LoraLoaderModelOnly", model=node[0], **lora)[0]
    for sampled in (
        graph.k_sampler(node, **{"model": model} if order == "after" else {}),
        graph.tiled_sampler(node, **{"model": model} if order == "after" else {}),
    ):
        assert torch.allclose(graph.latents(sampled[0]), expected, atol=SAME)
    assert not torch.allclose(plain, expected, atol=1e-2)


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_fp8_base_is_the_rounded_base(graph: Graph, models: Path, base: dict[str, Tensor], dtype: str) -> None:
    kind = torch.float8_e5m2 if dtype == "fp8_e5m2" else torch.float8_e4m3fn
    rounded = {key: value.to(kind).float() for key, value in base.items()}
    full = controlled(graph)
    small = controlled(graph, loaded_by_core(graph, models, "matrix_base", base, dtype)[0])
    by_hand = controlled(graph, loaded_by_core(graph, models, f"rounded_{dtype}", rounded)[0])
    assert torch.allclose(small, by_hand, atol=SAME)
    error = ((small - full).norm() / full.norm()).item()
    assert 1e-4 < error < 0.2, error


@pytest.mark.parametrize("order", ["before", "after"])
def test_merged_models_are_merged_by_hand(graph: Graph, models: Path, base: dict[str, Tensor], order: str) -> None:
    generator = torch.Generator().manual_seed(2)
    other = {
        key: value + 0.3 * value.std() * torch.randn(value.shape, generator=generator) if value.ndim == 2 else value
        for key, value in base.items()
    }
    mixed = {key: 0.25 * base[key] + 0.75 * other[key] for key in base}
    expected = controlled(graph, loaded_by_core(graph, models, "mixed", mixed)[0])
    plain, loaded = controlled(graph), graph.load()
    second = loaded_by_core(graph, models, "other", other)[0]
    if order == "before":
        merged = graph.add("ModelMergeSimple", model1=loaded[0], model2=second, ratio=0.25)[0]
        got = controlled(graph, merged)
    else:
        node = graph.apply(photo(graph), loaded)
        merged = graph.add("ModelMergeSimple", model1=node[0], model2=second, ratio=0.25)[0]
        got = graph.latents(graph.k_sampler(node, model=merged)[0])
    assert torch.allclose(got, expected, atol=SAME)
    assert not torch.allclose(got, plain, atol=1e-2)


# What else is set on a MODEL


def test_shift_is_the_same_before_and_after(graph: Graph) -> None:
    loaded = graph.load()
    shifted = graph.add("ModelSamplingSD3", model=loaded[0], shift=3.0)[0]
    node = graph.apply(photo(graph), loaded)
    after = graph.add("ModelSamplingSD3", model=node[0], shift=3.0)[0]
    early = graph.apply(photo(graph), loaded, model=shifted)
    by_early, by_late, unshifted = (
        graph.latents(graph.k_sampler(node, model=model, steps=4)[0]) for model in (early[0], after, node[0])
    )
    assert torch.equal(by_early, by_late)
    assert not torch.allclose(by_early, unshifted, atol=1e-2)
    for model, shift in ((early[0], 3.0), (after, 3.0), (node[0], EMBEDDED.shift)):
        levels = graph.add("BasicScheduler", model=model, scheduler="sgm_uniform", steps=4, denoise=1.0)[0]
        found = graph.latents(graph.add("TestSigmas", sigmas=levels)[0]).flatten()
        assert torch.allclose(found, schedule(4, shift), atol=1e-5)


@pytest.fixture(scope="module")
def small(models: Path) -> None:
    """A base like SD3.5's of two blocks, with a control by DiT4SR's and by EAM's method; all random stand-ins."""
    sizes: dict[str, Any] = {"depth": 2, "hidden_size": 128, "qk_norm": True}
    stand_ins = {
        "diffusion_models/small_base": MMDiT(MMDiTParams(**sizes, context_size=64, pooled_size=64)),
        "model_patches/small_dit4sr": DiT4SR(DiT4SRParams(**sizes)),
        "model_patches/small_eam": ControlStream(ControlParams(**sizes, lr_attention="self")),
    }
    for index, (name, module) in enumerate(stand_ins.items()):
        save_weights(models / f"{name}.safetensors", randomized(module, index))


def apply_small(graph: Graph, control: str, model: Any, image: Any, **changes: Any) -> Node:
    return graph.apply(image, graph.load(control=f"small_{control}.safetensors"), model=model, **changes)


def small_base(graph: Graph) -> Any:
    return graph.add("UNETLoader", unet_name="small_base.safetensors", weight_dtype="default")[0]


@pytest.mark.parametrize(
    ("backend", "control", "order"),
    [("eager", "eam", "after"), ("eager", "dit4sr", "before"), pytest.param("inductor", "eam", "before", marks=SLOW)],
)
def test_compiled_model_makes_the_same_picture(
    graph: Graph, small: None, backend: str, control: str, order: str
) -> None:
    """The eager backend leaves out the C++ compiler and keeps the tracing, which is where patches get in the way."""

    def compiled(model: Any) -> Any:
        kind = "TorchCompileModel" if backend == "inductor" else "TestCompiled"
        return graph.add(kind, model=model, backend=backend)[0]

    model = small_base(graph)
    node = apply_small(graph, control, model, photo(graph))
    changed = compiled(node[0]) if order == "after" else apply_small(graph, control, compiled(model), photo(graph))[0]
    expected, got, base = (
        graph.latents(graph.k_sampler(node, model=each, cfg=2.0)[0]) for each in (node[0], changed, model)
    )
    assert torch.allclose(got, expected, atol=1e-3)
    assert not torch.allclose(base, expected, atol=1e-2)


# VAE


def test_tiled_vae_nodes_are_close_to_untiled(graph: Graph) -> None:
    vae = graph.load()[2]
    size = {"width": 256, "height": 192}
    picture = graph.add("ImageScale", image=photo(graph), upscale_method="bicubic", crop="disabled", **size)[0]
    tiles = {"tile_size": 128, "overlap": 32, "temporal_size": 64, "temporal_overlap": 8}
    whole = graph.add("VAEEncode", pixels=picture, vae=vae)[0]
    in_tiles = graph.add("VAEEncodeTiled", pixels=picture, vae=vae, **tiles)[0]
    latents = graph.latents(whole)
    assert (graph.latents(in_tiles) - latents).abs().max() < 0.02 * latents.std()
    decoded = graph.images(graph.add("VAEDecode", samples=whole, vae=vae)[0])[0]
    decoded_in_tiles = graph.images(graph.add("VAEDecodeTiled", samples=whole, vae=vae, **tiles)[0])[0]
    assert np.abs(decoded_in_tiles - decoded).max() <= 3
    assert np.abs(decoded_in_tiles - decoded).mean() < 0.5


def test_large_photos_are_cleaned_in_tiles(graph: Graph, tmp_path: Path) -> None:
    """1280 x 192 pixels are two tiles of the encoder: their latents are those of the whole photo, cleaned."""
    pixels = load_image(REPO / "eam_core" / "assets" / "sample_lr.png").rgb
    strip = (resize(pixels, (24, 160)) * 255).round().byte()
    Image.fromarray(strip[0].movedim(0, -1).numpy()).save(tmp_path / "strip.png")
    graph.server.upload_image(tmp_path / "strip.png")
    cleaned = graph.latents(graph.apply(photo(graph, "strip"), graph.load(), scale=8.0)[3])
    assert EMBEDDED.autoencoder
    autoencoder = build_autoencoder(read_weights(EMBEDDED.autoencoder), "autoencoder").float()
    canvas = 2 * resize(strip / 255, (192, 1280)) - 1
    with torch.no_grad():
        expected, raw = autoencoder.encode_degraded(canvas), autoencoder.encode(canvas)
    assert (cleaned - expected).abs().max() < 0.02 * expected.std()
    assert (raw - expected).abs().max() > 0.2 * expected.std()


# Two controls


def test_two_controls_the_last_one_counts_and_it_is_said(graph: Graph) -> None:
    loaded = graph.load()
    start = log_size(graph.server)
    alone = graph.apply(photo(graph, "two"), loaded)
    expected = graph.latents(graph.k_sampler(alone)[0])
    assert "takes the place of" not in log_since(graph.server, start)
    first = graph.apply(photo(graph), loaded, control_scale=0.7)
    second = graph.apply(photo(graph, "two"), loaded, model=first[0], positive=first[1], negative=first[2])
    assert torch.equal(graph.latents(graph.k_sampler(second)[0]), expected)
    assert log_since(graph.server, start).count("takes the place of the control that the MODEL had") == 1


def test_a_later_control_gets_its_own_tiles_back(graph: Graph, small: None) -> None:
    picture = graph.add("EmptyImage", width=80, height=16, batch_size=1, color=0x336699)[0]
    published = apply_small(graph, "dit4sr", small_base(graph), picture, scale=8.0)
    later = apply_small(graph, "eam", published[0], picture, scale=8.0)
    again = apply_small(graph, "dit4sr", later[0], picture, scale=8.0)
    for node, spec, other in ((published, DIT4SR, SD3), (later, SD3, DIT4SR), (again, DIT4SR, SD3)):
        found, own, others = (
            graph.latents(graph.tiled_sampler(node, steps=1, tile=tile, overlap=overlap)[0])
            for tile, overlap in ((0, 0), (spec.tile, spec.overlap), (other.tile, other.overlap))
        )
        assert torch.equal(found, own)
        assert not torch.allclose(found, others, atol=1e-2)


@pytest.fixture
def controlnets(models: Path, captioning_models: ModuleType) -> None:
    """Two ControlNets of SD3 in the size of the embedded base: random, and random with nothing to add."""
    from diffusers import SD3ControlNetModel

    sizes = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 64, "caption_projection_dim": 256}
    net = SD3ControlNetModel(**sizes, joint_attention_dim=64, pooled_projection_dim=64, pos_embed_max_size=64)
    state = randomized(net, 4)
    silent = {key: 0 * value if key.startswith("controlnet_blocks") else value for key, value in state.items()}
    (models / "controlnet").mkdir(exist_ok=True)
    for name, tensors in (("random", state), ("silent", silent)):
        save_weights(models / "controlnet" / f"{name}.safetensors", tensors)


def test_cores_controlnet_adds_to_the_control(graph: Graph, controlnets: None) -> None:
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    bare = graph.add("CLIPTextEncode", text="", clip=loaded[1])[0]

    def result(net: str, *, eam: bool, **tiling: Any) -> Tensor:
        sides: Any = (node[1], node[2]) if eam else (bare, bare)
        if net:
            numbers = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
            links = {"positive": sides[0], "negative": sides[1], "vae": loaded[2], "image": big}
            links["control_net"] = graph.add("ControlNetLoader", control_net_name=f"{net}.safetensors")[0]
            both = graph.add("ControlNetApplySD3", **links | numbers)
            sides = (both[0], both[1])
        return graph.latents(graph.tiled_sampler(node, positive=sides[0], negative=sides[1], **tiling)[0])

    big = graph.add("ImageScaleBy", image=photo(graph, "two"), upscale_method="bicubic", scale_by=4.0)[0]
    for eam in (False, True):
        assert torch.allclose(result("silent", eam=eam), result("", eam=eam), atol=SAME)
        assert not torch.allclose(result("random", eam=eam), result("", eam=eam), atol=1e-2)
    assert not torch.allclose(result("random", eam=True), result("random", eam=False), atol=1e-2)
    with pytest.raises(ExecutionError, match=r"EAM_TiledSampler: expected conditioning that can be cut .* ControlNet"):
        result("random", eam=True, **TILED)
