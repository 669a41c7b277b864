"""One real ComfyUI for all tests of this folder, on a private folder, with this pack in it."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "core"))
sys.path.append(str(Path(__file__).resolve().parent))

import caption_graph
from comfy_host import ComfyServer
from graphs import Graph


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "custom_nodes").mkdir()
    for pack in ("probe_pack.py", "soak_pack.py"):
        shutil.copy(Path(__file__).with_name(pack), folder / "custom_nodes")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONWARNINGS", "default")  # for test_start_log.py
            running = stack.enter_context(ComfyServer(folder))
        yield running


@pytest.fixture
def graph(server: ComfyServer, photos: None) -> Graph:
    return Graph(server)


@pytest.fixture(scope="session")
def models(server: ComfyServer) -> Path:
    """ComfyUI's own folders of weights."""
    folder = server.work_dir / "models"
    for kind in ("checkpoints", "diffusion_models", "loras", "model_patches"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def photos(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two small pictures of 32 x 24 pixels in the input folder."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:24, 0:32]
    for name, phase in (("one", 0.0), ("two", 2.0)):
        waves = [np.sin(x / period + phase) * np.cos(y / (period + 1)) for period in (3, 5, 9)]
        pixels = np.stack(waves, axis=-1) * 60 + (x + y)[..., None] + 90
        path = folder / f"{name}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        server.upload_image(path)


@pytest.fixture(scope="session")
def beach(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A picture of 48 x 32 pixels in the input folder."""
    path = tmp_path_factory.mktemp("photo") / "beach.png"
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((48, 32), Image.Resampling.BICUBIC).save(path)
    return server.upload_image(path)


@pytest.fixture
def forget_captions(server: ComfyServer) -> None:
    """Make ComfyUI forget results, and the pack its captions."""
    caption_graph.free(server)
    shutil.rmtree(caption_graph.kept(server), ignore_errors=True)
