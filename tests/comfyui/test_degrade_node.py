"""EAM_Degrade's presets in a real ComfyUI: what they do, and that workflows from before they existed still run."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import ComfyServer
from PIL import Image

from eam_core.degradation import PRESETS, degrade

WIDGETS = {"scale": 4, "blur": 0.0, "noise": 0.0, "jpeg_quality": 100, "seed": 5}


@pytest.fixture(scope="module")
def pixels(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """A picture of 96 x 64 pixels in the input folder."""
    y, x = np.mgrid[0:64, 0:96]
    waves = [np.sin(x / period) * np.cos(y / (period + 1)) for period in (3, 5, 9)]
    values = (np.stack(waves, axis=-1) * 90 + 128).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("photos") / "waves.png"
    Image.fromarray(values).save(path)
    server.upload_image(path)
    return values


def degraded(server: ComfyServer, *, copies: int = 1, **changes: Any) -> list[np.ndarray]:
    """Run the node on copies of the picture and return what it made, [H, W, 3] in 0..255."""
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "waves.png"}},
        "2": {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": copies}},
        "3": {"class_type": "EAM_Degrade", "inputs": {"image": ["2", 0], **WIDGETS, **changes}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    found = server.run(prompt)["4"]["images"]
    return [np.asarray(Image.open(io.BytesIO(server.fetch(image))).convert("RGB")) for image in found]


def by_core(pixels: np.ndarray, preset: str, seed: int, scale: int = 4) -> np.ndarray:
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    return (degrade(images, scale, PRESETS[preset], [seed])[0].permute(1, 2, 0) * 255).round().byte().numpy()


def close(a: np.ndarray, b: np.ndarray) -> bool:
    # A picture is truncated, not rounded, on its way into a PNG.
    return a.shape == b.shape and int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


def test_new_input_comes_last_and_may_be_absent(server: ComfyServer, pixels: np.ndarray) -> None:
    inputs = server.object_info()["EAM_Degrade"]["input"]
    assert list(inputs["required"]) == ["image", "scale", "blur", "noise", "jpeg_quality", "seed"]
    assert list(inputs["optional"]) == ["preset"]
    (old,), (custom,) = degraded(server, noise=20.0), degraded(server, noise=20.0, preset="custom")
    assert np.array_equal(old, custom)
    assert not close(old, by_core(pixels, "plain", 5))


@pytest.mark.parametrize("preset", ["plain", "light", "stock"])
def test_presets_do_what_the_library_does(server: ComfyServer, pixels: np.ndarray, preset: str) -> None:
    (picture,) = degraded(server, preset=preset, scale=2)
    assert picture.shape == (32, 48, 3)
    assert close(picture, by_core(pixels, preset, 5, scale=2))


def test_each_image_of_a_batch_has_the_next_seed(server: ComfyServer, pixels: np.ndarray) -> None:
    pictures = degraded(server, copies=3, preset="light")
    assert all(close(picture, by_core(pixels, "light", 5 + index)) for index, picture in enumerate(pictures))
    assert not close(pictures[0], pictures[1])
    (following,) = degraded(server, preset="light", seed=6)
    assert np.array_equal(pictures[1], following)


def test_presets_ignore_the_widgets_of_custom(server: ComfyServer, pixels: np.ndarray) -> None:
    (picture,) = degraded(server, preset="plain", blur=5.0, noise=50.0, jpeg_quality=5)
    assert close(picture, by_core(pixels, "plain", 5))


def test_last_seed_of_the_widget(server: ComfyServer, pixels: np.ndarray) -> None:
    pictures = degraded(server, copies=2, preset="stock", seed=2**64 - 1)
    assert close(pictures[1], by_core(pixels, "stock", 0))
