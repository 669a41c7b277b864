"""TSD-SR in a real ComfyUI: LoRA on clones of MODEL and VAE, one step by either sampler, and the library's picture."""

import io
import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import tsdsr_golden
from comfy_host import REPO, ComfyServer, ExecutionError, graph_to_prompt
from PIL import Image
from safetensors.torch import save_file
from tsdsr_graph import BASE, NAME, PICTURE, Graph, close, tsdsr_host

from eam_core.checkpoint import build_mmdit
from eam_core.lora import merge, transformer_changes
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.pipeline import Restorer
from eam_core.presets import TSDSR
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import save_weights


@pytest.fixture(scope="module")
def golden():
    if not tsdsr_golden.FILES:
        pytest.skip(f"no golden files tsdsr_*.safetensors in {tsdsr_golden.FOLDER}; set EAM_GOLDEN")
    return tsdsr_golden.Golden.load(tsdsr_golden.FILES[0])


@pytest.fixture(scope="module")
def host(golden: tsdsr_golden.Golden, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with tsdsr_host(golden, tmp_path_factory.mktemp("host")) as running:
        yield running


@pytest.fixture
def graph(host: ComfyServer) -> Graph:
    return Graph(host)


# Parity with the authors' code


@pytest.mark.parametrize("case", ["single", "resized"])
def test_velocity_equals_the_authors_and_the_users_model_stays(golden, graph: Graph, case: str) -> None:
    before = graph.velocity(graph.model, case)
    patched = graph.velocity([graph.apply(), 0], case)
    first, with_lora = graph.latents(before, patched)
    close(with_lora, golden[f"{case}/velocity"])
    assert (first - with_lora).abs().max() > 0.1
    again = Graph(graph.server)
    plain = MMDiT(MMDiTParams(depth=2, hidden_size=128, context_size=64, pooled_size=32, pos_embed_max_size=32))
    plain.load_state_dict(golden.base)
    with torch.no_grad():
        expected = plain(golden[f"{case}/lr_latent"], torch.full((1,), 1000.0), *golden.text)
    close(first, expected)
    # Asked after the patched one, which shares its weights.
    shifted = [again.add("ModelSamplingSD3", model=again.model, shift=2.0), 0]
    close(again.latents(again.velocity(shifted, case))[0], expected)


def test_vae_clone_equals_the_authors_and_the_users_vae_stays(golden, graph: Graph) -> None:
    canvas = [graph.add("TestGoldenCanvas", case="single"), 0]
    plain = golden["single/posterior_mean_without_lora"]
    (before,) = graph.latents([graph.add("VAEEncode", pixels=canvas, vae=graph.vae), 0])
    (mean,) = graph.latents([graph.apply(), 3])
    # The same pixels by another way, so that nothing comes from a cache: the VAE after its clone was patched and used.
    same = [graph.add("ImageInvert", image=[graph.add("ImageInvert", image=canvas), 0]), 0]
    (after,) = graph.latents([graph.add("VAEEncode", pixels=same, vae=graph.vae), 0])
    close(before, plain)
    close(mean, golden["single/posterior_mean"])
    close(after, plain)


@pytest.mark.parametrize("by", ["ours", "core's"])
def test_whole_graph_equals_the_authors(golden, graph: Graph, by: str) -> None:
    """Their noise is that of seed 21, so nothing has to be put in by hand; start_sigma of the widget is another."""
    applied = graph.apply()
    sampled = graph.sample(applied) if by == "ours" else graph.sample_by_core(applied, steps=3)
    close(graph.latents(sampled)[0], golden["single/output_latent"] / 1.5305)
    levels = graph.picture(sampled)
    assert (levels - golden["single/png_nofix"].int()).abs().max() <= 1


# With the library


@pytest.fixture(scope="module")
def restorer(golden, tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    folder = tmp_path_factory.mktemp("library")
    diffusers = _diffusers()
    return Restorer.from_files(
        base=golden.save_base(folder / "base.safetensors"),
        control=golden.save_control(folder / "control"),
        autoencoder=golden.save_autoencoder(diffusers, folder / "vae"),
    )


def _diffusers() -> Any:
    library = None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _diffusers.library = library  # the definitions live as long as it does
    return pytest.importorskip("diffusers")


@pytest.mark.parametrize("tiling", [{}, {"tile": 64, "overlap": 16, "tile_batch": 4}], ids=["one tile", "tiles"])
def test_graph_and_library_make_the_same_picture(golden, graph: Graph, restorer: Restorer, tiling) -> None:
    """Not square, another seed; latents of 12 x 20 are three by two tiles of 8."""
    image = golden["tiled/lr_image_uint8"].permute(2, 0, 1)[None].float() / 255
    config = RestoreConfig.from_spec(TSDSR, seed=5, color_fix="none", **tiling)
    expected = restorer.restore(image, config)[0].permute(1, 2, 0)
    levels = graph.picture(graph.sample(graph.apply("tiled"), seed=5, **tiling))
    assert levels.shape == (96, 160, 3)
    assert (levels / 255 - expected).abs().max() < PICTURE


def test_encoder_noise_zero_is_the_mean_for_any_seed(golden, graph: Graph, restorer: Restorer) -> None:
    applied = graph.apply(encoder_noise=0.0)
    one, two = graph.latents(graph.sample(applied), graph.sample(applied, seed=22))
    assert torch.equal(one, two)
    image = golden["single/lr_image_uint8"].permute(2, 0, 1)[None].float() / 255
    config = RestoreConfig.from_spec(TSDSR, seed=1, encoder_noise=0.0, color_fix="none")
    with torch.no_grad():
        decoded = (restorer.autoencoder.decode(one) / 2 + 0.5).clamp(0, 1)
    assert (decoded - restorer.restore(image, config)).abs().max() < PICTURE


def test_batches_and_variants(golden, graph: Graph) -> None:
    applied = graph.apply()
    twice = [graph.add("RepeatLatentBatch", samples=[applied, 3], amount=2), 0]
    both, single = graph.latents(graph.sample(applied, latent=twice), graph.sample(applied))
    assert len(both) == 2
    assert not torch.allclose(both[0], both[1], atol=1e-2)
    batch = [graph.add("ImageBatch", image1=graph.photo("single"), image2=graph.photo("single")), 0]
    (pair,) = graph.latents(graph.sample(graph.apply(image=batch)))
    close(pair, both)
    close(both[:1], single, 0.02)  # core draws a batch's noise in one piece, so only its start is shared


def test_latents_of_another_size_are_refused(graph: Graph) -> None:
    empty = [graph.add("EmptySD3LatentImage", width=96, height=80, batch_size=1), 0]
    with pytest.raises(ExecutionError, match=r"KSampler: expected latents of 8 x 8 .* got 12 x 10"):
        graph.latents(graph.sample_by_core(graph.apply(), latent_image=empty))


def test_example_workflow(golden, host: ComfyServer, restorer: Restorer) -> None:
    """Only the names of the files differ, and the VAE, which core cannot load at this size."""
    workflow = json.loads((REPO / "example_workflows" / "tsdsr_upscale.json").read_text())
    prompt = graph_to_prompt(workflow, host.object_info())
    ids = {node["class_type"]: key for key, node in prompt.items()}
    prompt[ids["LoadImage"]]["inputs"]["image"] = "tiled.png"
    assert prompt[ids["EAM_LoadModel"]]["inputs"]["control"] == NAME
    prompt[ids["EAM_LoadModel"]]["inputs"]["checkpoint"] = BASE
    prompt["99"] = {"class_type": "TestGoldenVAE", "inputs": {}}
    for kind in ("EAM_ApplyControl", "VAEDecode"):
        prompt[ids[kind]]["inputs"]["vae"] = ["99", 0]
    found = host.run(prompt)[ids["SaveImage"]]["images"][0]
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(host.fetch(found))))).float() / 255
    image = golden["tiled/lr_image_uint8"].permute(2, 0, 1)[None].float() / 255
    expected = restorer.restore(image, RestoreConfig.from_spec(TSDSR))[0].permute(1, 2, 0)
    assert pixels.shape == expected.shape
    assert (pixels - expected).abs().max() < PICTURE


# Beside other patches


def test_a_second_apply_replaces_the_first(golden, graph: Graph) -> None:
    second = graph.apply(model=[graph.apply("tiled"), 0])
    alone = graph.apply()
    chained, single, velocity = graph.latents(graph.sample(second), graph.sample(alone), graph.velocity([second, 0]))
    close(velocity, golden["single/velocity"])
    close(chained, single)


def test_another_control_takes_the_weights_back(golden, graph: Graph, host: ComfyServer) -> None:
    zero = ControlStream(ControlParams(depth=2, hidden_size=128))
    for block in zero.control_blocks:
        torch.nn.init.zeros_(block.img_out.weight)
        torch.nn.init.zeros_(block.img_out.bias)
    save_weights(host.work_dir / "models" / "model_patches" / "zero.safetensors", zero.state_dict())
    other = [graph.add("EAM_LoadModel", checkpoint=BASE, control="zero.safetensors"), 3]
    tsdsr = graph.apply()
    changed = graph.apply(model=[tsdsr, 0], control=other)
    plain = graph.apply(control=other)
    after, before = graph.latents(graph.sample(changed, start_sigma=1.0), graph.sample(plain, start_sigma=1.0))
    assert torch.equal(after, before)
    (host.work_dir / "models" / "model_patches" / "zero.safetensors").unlink()


def test_scale_zero_is_refused(graph: Graph) -> None:
    with pytest.raises(ExecutionError, match="expected control_scale 1"):
        graph.latents(graph.velocity([graph.apply(control_scale=0.0), 0]))


def test_users_own_lora_stays(golden, graph: Graph, host: ComfyServer) -> None:
    generator = torch.Generator().manual_seed(0)
    name, key = "diffusion_model.joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.x_block.attn.qkv.weight"
    up, down = torch.randn(384, 4, generator=generator), 0.05 * torch.randn(4, 128, generator=generator)
    save_file(
        {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, host.work_dir / "models/loras/own.safetensors"
    )

    def with_lora(model: list[Any]) -> list[Any]:
        return [graph.add("LoraLoaderModelOnly", model=model, lora_name="own.safetensors", strength_model=1.0), 0]

    before = graph.velocity([graph.apply(model=with_lora(graph.model)), 0])
    after = graph.velocity(with_lora([graph.apply(), 0]))
    state = merge(golden.base, transformer_changes(golden.group("lora_transformer/"), "x"), "x")
    state[key] = state[key] + up @ down
    with torch.no_grad():
        expected = build_mmdit(state, "x")(golden["single/lr_latent"], torch.full((1,), 1000.0), *golden.text)
    for got in graph.latents(before, after):
        close(got, expected)
    assert (expected - golden["single/velocity"]).abs().max() > 0.01


def test_base_of_another_loader_in_eight_bits(golden, graph: Graph) -> None:
    model = [graph.add("UNETLoader", unet_name=BASE, weight_dtype="fp8_e4m3fn"), 0]
    (velocity,) = graph.latents(graph.velocity([graph.apply(model=model), 0]))
    error = (velocity - golden["single/velocity"]).norm()
    assert 0 < error < 0.3 * (golden["single/velocity_without_lora"] - golden["single/velocity"]).norm()


# Files


def test_found_by_itself_and_shows_its_licence(golden, host: ComfyServer) -> None:
    graph = Graph(host, control="auto")
    (velocity,) = graph.latents(graph.velocity([graph.apply(), 0]))
    close(velocity, golden["single/velocity"])
    log = host.log_path.read_text()
    assert "EAM: transformer.safetensors: " in log and "Apache" in log and "Stability AI Community License" in log


def test_text_of_the_users_own_encoders(golden, host: ComfyServer) -> None:
    folder = host.work_dir / "models" / "model_patches" / "bare"
    golden.save_control(folder)
    (folder / "embeddings.safetensors").unlink()
    graph = Graph(host, control="bare/transformer.safetensors")
    with pytest.raises(
        ExecutionError, match=r"EAM_ControlPrompt: .*convert-embedding .* or connect SD3's text encoders"
    ):
        graph.latents([graph.add("TestCondAsLatent", conditioning=graph.text), 0])
    graph = Graph(host, control="bare/transformer.safetensors")
    clip = [graph.add("TestTextCLIP"), 0]
    graph.text = [graph.add("EAM_ControlPrompt", control=graph.control, clip=clip), 0]
    (tokens,) = graph.latents([graph.add("TestCondAsLatent", conditioning=graph.text), 0])
    assert tokens.shape == (1, 1, 256, 64)
    assert (tokens == len(TSDSR.fixed_prompt)).all()
    shutil.rmtree(folder)


def test_missing_vae_part(golden, host: ComfyServer) -> None:
    folder = host.work_dir / "models" / "model_patches" / "half"
    golden.save_control(folder)
    (folder / "vae.safetensors").unlink()
    graph = Graph(host, control="half/transformer.safetensors")
    with pytest.raises(ExecutionError, match=r"EAM_LoadModel: expected vae.safetensors beside transformer.safetensors"):
        graph.latents([graph.apply(), 3])
    shutil.rmtree(folder)


def test_other_models_are_refused(golden, graph: Graph, host: ComfyServer) -> None:
    embedded = [graph.add("EAM_LoadModel", checkpoint="embedded (tiny, no text)", control="auto"), 2]
    with pytest.raises(ExecutionError, match=r"EAM_ApplyControl: expected the VAE of SD3-medium, whose encoder"):
        graph.latents([graph.apply(vae=embedded), 3])
    params = MMDiTParams(depth=2, hidden_size=128, context_size=64, pooled_size=64, qk_norm=True)
    save_weights(host.work_dir / "models/diffusion_models/like_sd35.safetensors", MMDiT(params).state_dict())
    graph = Graph(host)
    model = [graph.add("UNETLoader", unet_name="like_sd35.safetensors", weight_dtype="default"), 0]
    with pytest.raises(
        ExecutionError, match=r"EAM_ApplyControl: expected control weights for this base .*qk_norm False"
    ):
        graph.latents([graph.apply(model=model), 3])
    graph = Graph(host)
    other = [graph.add("EAM_LoadModel", checkpoint="embedded (tiny, no text)", control="auto"), 3]
    with pytest.raises(ExecutionError, match=r"EAM_ControlPrompt: expected a control with a prompt of its own"):
        graph.latents(
            [graph.add("TestCondAsLatent", conditioning=[graph.add("EAM_ControlPrompt", control=other), 0]), 0]
        )
