"""EAM_Compare in a real ComfyUI: its figures, its pairs, its sentences, its keys."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import ComfyServer
from PIL import Image

from eam_core.images import resize
from eam_core.quality import psnr, ssim


def picture(width: int, height: int, seed: int) -> np.ndarray:
    """Return smooth noise [height, width, 3] of uint8."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


PICTURES = {
    "one": picture(48, 32, 1),
    "two": picture(48, 32, 2),
    "small": picture(24, 16, 1),
    "tiny": picture(8, 6, 1),
    "tall": picture(20, 60, 1),
}


@pytest.fixture(scope="module", autouse=True)
def uploaded(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("compare")
    for name, pixels in PICTURES.items():
        Image.fromarray(pixels).save(folder / f"compare_{name}.png")
        server.upload_image(folder / f"compare_{name}.png")


def compare(server: ComfyServer, before: list[str], after: list[str], **labels: str) -> dict[str, Any]:
    """Run EAM_Compare on two batches and return what it tells the page."""
    prompt: dict[str, Any] = {}

    def add(kind: str, **inputs: Any) -> list[Any]:
        prompt[str(len(prompt) + 1)] = {"class_type": kind, "inputs": inputs}
        return [str(len(prompt)), 0]

    def batch(names: list[str]) -> list[Any]:
        images = [add("LoadImage", image=f"compare_{name}.png") for name in names]
        joined = images[0]
        for image in images[1:]:
            joined = add("ImageBatch", image1=joined, image2=image)
        return joined

    node = add("EAM_Compare", before=batch(before), after=batch(after), **labels)
    return server.run(prompt)[node[0]]


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(PICTURES[name].copy()).movedim(-1, 0)[None] / 255


def test_figures_sizes_and_labels_of_a_pair(server: ComfyServer) -> None:
    told = compare(server, ["one"], ["two"], before_label=" Photo ", after_label="")
    assert set(told) == {"a_images", "b_images", "eam_compare"}, "images would show the stock preview again"
    (pair,) = told["eam_compare"]
    wanted = psnr(tensor("two"), tensor("one")).item(), ssim(tensor("two"), tensor("one")).item()
    assert (pair["psnr"], pair["ssim"]) == pytest.approx(wanted)
    assert pair["labels"] == ["Photo", "After"] and pair["note"] == "" and pair["equal"] is False
    assert pair["a_size"] == pair["b_size"] == [48, 32]
    for key, name in (("a_images", "one"), ("b_images", "two")):
        saved = Image.open(io.BytesIO(server.fetch(told[key][0])))
        assert np.abs(np.asarray(saved).astype(int) - PICTURES[name]).max() <= 1


def test_equal_pictures_have_no_infinite_figure(server: ComfyServer) -> None:
    (pair,) = compare(server, ["one"], ["one"])["eam_compare"]
    assert pair["equal"] is True and pair["psnr"] is None and pair["ssim"] == pytest.approx(1)


def test_pictures_that_differ_in_transparency_alone_are_not_equal(server: ComfyServer) -> None:
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "compare_one.png"}},
        "2": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 48, "height": 32}},
        "3": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["1", 0], "alpha": ["2", 0]}},
        "4": {"class_type": "EAM_Compare", "inputs": {"before": ["1", 0], "after": ["3", 0]}},
        "5": {"class_type": "EAM_Compare", "inputs": {"before": ["3", 0], "after": ["3", 0]}},
    }
    told = server.run(prompt)
    (pair,) = told["4"]["eam_compare"]
    assert (pair["equal"], pair["psnr"]) == (False, None)
    assert pair["note"] == "Transparency differs; the figures compare the colours alone."
    (pair,) = told["5"]["eam_compare"]
    assert pair["equal"] is True and pair["note"] == ""


def test_smaller_side_is_enlarged(server: ComfyServer) -> None:
    enlarged = resize(tensor("small"), (32, 48))
    wanted = psnr(enlarged, tensor("two")).item()
    for before, after, side in ((["small"], ["two"], "before"), (["two"], ["small"], "after")):
        (pair,) = compare(server, before, after)["eam_compare"]
        assert pair["psnr"] == pytest.approx(wanted, rel=1e-6)
        assert pair["note"] == f"Sizes differ: {side} is enlarged bicubically to 48 × 32 for the figures."
    (pair,) = compare(server, ["tall"], ["one"])["eam_compare"]
    assert pair["note"].endswith("; their shapes differ, so it is stretched.")


def test_pictures_below_the_window_have_no_ssim(server: ComfyServer) -> None:
    (pair,) = compare(server, ["tiny"], ["tiny"])["eam_compare"]
    assert pair["ssim"] is None and pair["equal"] is True


def test_shorter_batch_repeats_its_last(server: ComfyServer) -> None:
    told = compare(server, ["one", "two", "one"], ["one", "two"])
    pairs = told["eam_compare"]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [(0, 0), (1, 1), (2, 1)]
    assert [pair["equal"] for pair in pairs] == [True, True, False]
    assert math.isfinite(pairs[2]["psnr"])
    assert pairs[0]["note"] == "Batches differ (3 and 2): after repeats its last image, number 2."
    assert [len(told[key]) for key in ("a_images", "b_images")] == [3, 2]


def test_pictures_of_a_list_are_numbered_through(server: ComfyServer) -> None:
    prompt: dict[str, Any] = {}

    def add(kind: str, **inputs: Any) -> list[Any]:
        prompt[str(len(prompt) + 1)] = {"class_type": kind, "inputs": inputs}
        return [str(len(prompt)), 0]

    def listed(*names: str) -> list[Any]:
        one, two = (add("LoadImage", image=f"compare_{name}.png") for name in names)
        return add("RebatchImages", images=add("ImageBatch", image1=one, image2=two), batch_size=1)

    node = add("EAM_Compare", before=listed("one", "two"), after=listed("one", "one"))
    told = server.run(prompt)[node[0]]
    assert [(pair["a"], pair["b"], pair["equal"]) for pair in told["eam_compare"]] == [(0, 0, True), (1, 1, False)]
    assert [len(told[key]) for key in ("a_images", "b_images")] == [2, 2]


def test_names_differ_from_run_to_run(server: ComfyServer) -> None:
    names = [compare(server, ["one"], [after])["a_images"][0]["filename"] for after in ("two", "small")]
    assert names[0].split("_")[3] != names[1].split("_")[3]
    assert all(Path(server.work_dir / "temp" / name).is_file() for name in names)
