"""The nodes under the flags that people with little memory start ComfyUI with; see docs/COMPATIBILITY.md."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comfy_host import ComfyServer
from folders import Job, make_pictures
from graphs import TILED, Graph, log_since, log_size, photo
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

ON_GPU = torch.cuda.is_available()  # core takes --novram and --lowvram only there; low_memory_pack.py stands in for it
SAME = 1e-4  # latents are about 1; the same sum in another order


def start(server: ComfyServer, folder: Path, flags: tuple[str, ...], pack: str = "") -> ComfyServer:
    """Prepare a server of one's own with the pictures of another one."""
    (folder / "custom_nodes").mkdir()
    if pack:
        shutil.copy(Path(__file__).with_name(pack), folder / "custom_nodes")
    (folder / "models" / "loras").mkdir(parents=True)
    shutil.copytree(server.work_dir / "input", folder / "input")
    return ComfyServer(folder, flags)


@pytest.fixture(scope="module")
def novram(server: ComfyServer, photos: None, models: Path, tmp_path_factory: pytest.TempPathFactory):
    generator = torch.Generator().manual_seed(5)
    name = "diffusion_model.joint_blocks.0.x_block.attn.qkv"
    shapes = {f"{name}.lora_up.weight": (768, 4), f"{name}.lora_down.weight": (4, 256)}
    lora = {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    flags = ("--disable-smart-memory", *(("--novram",) if ON_GPU else ()))
    prepared = start(server, tmp_path_factory.mktemp("novram"), flags, "low_memory_pack.py")
    for folder in (models, prepared.work_dir / "models"):
        save_file(lora, folder / "loras" / "low_memory.safetensors")
    with prepared as running:
        yield running


@pytest.fixture(scope="module")
def halves(server: ComfyServer, photos: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    flags = ("--cpu-vae", "--bf16-unet", "--cache-none", *(("--lowvram",) if ON_GPU else ()))
    with start(server, tmp_path_factory.mktemp("halves"), flags) as running:
        yield running


def picture(server: ComfyServer, name: str = "one", *, lora: bool = False, **sampling: object) -> Tensor:
    graph = Graph(server)
    loaded = graph.load()
    node = graph.apply(photo(graph, name), loaded)
    model = node[0]
    if lora:
        named = {"lora_name": "low_memory.safetensors", "strength_model": 1.0}
        model = graph.add("LoraLoaderModelOnly", model=model, **named)[0]
    return graph.latents(graph.tiled_sampler(node, model=model, **TILED, **sampling)[0])


def decoded(server: ComfyServer) -> Tensor:
    graph = Graph(server)
    loaded = graph.load()
    sampled = graph.tiled_sampler(graph.apply(photo(graph), loaded))[0]
    return torch.from_numpy(graph.images(graph.add("VAEDecode", samples=sampled, vae=loaded[2])[0])[0])


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_weights_that_stay_in_main_memory(server: ComfyServer, novram: ComfyServer, lora: bool) -> None:
    before = log_size(novram)
    assert torch.allclose(picture(novram, lora=lora), picture(server, lora=lora), atol=SAME)
    said = log_since(novram, before)
    assert "loaded partially" in said
    assert f"lowvram patches: {int(lora)}" in said
    assert (picture(server, lora=True) - picture(server)).abs().max() > 0.01


def test_the_small_vae_is_loaded_whole(server: ComfyServer, novram: ComfyServer) -> None:
    before = log_size(novram)
    assert (decoded(novram) - decoded(server)).abs().max() <= 1
    assert "left behind: PatchAutoencoder" not in log_since(novram, before)


def test_graphs_in_turn_unload_and_reload(novram: ComfyServer) -> None:
    """Another graph between, without smart memory: all models leave and come back, and the picture is the same."""
    first = picture(novram, seed=8)
    other = picture(novram, "two", seed=8, lora=True)
    before = log_size(novram)
    again = picture(novram, seed=8)
    assert "loaded partially" in log_since(novram, before)
    assert torch.equal(again, first)
    assert not torch.allclose(other, first, atol=1e-2)


def test_half_precision_is_close(server: ComfyServer, halves: ComfyServer) -> None:
    full, half = picture(server), picture(halves)
    error = (half - full).norm() / full.norm()
    assert 1e-4 < error < 0.05, error
    assert torch.equal(picture(halves), half)
    assert (decoded(halves) - decoded(server)).abs().mean() < 3


def test_a_folder_without_a_cache(halves: ComfyServer) -> None:
    """Core then runs the loader again for each part that EAM_Upscale puts into the graph."""
    job = Job(halves, ("EAM_Upscale", {"scale": 1.0, "fidelity": 0.0, "caption": "", "seed": 0, "steps": 1}))
    names = [f"{number}.png" for number in range(1, 4)]
    for number, name in enumerate(names):
        make_pictures(job.folder, name, size=(32 + 16 * number, 32))
    assert job.run() == "Finished: 3 of 3."
    assert [line["name"] for line in job.lines("begun")] == names
    assert [Image.open(job.output / name).width for name in names] == [32, 48, 64]
