"""CPU, CUDA and Apple's GPUs without a flag; a whole restoration on a stand-in for a GPU without float64."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent))

from apple_gpu import AppleTensor, apple_gpu

from eam_core import device, report
from eam_core.captioning.model_device import choose_device, usual_device
from eam_core.cli import main
from eam_core.images import load_image, save_image
from eam_core.job_model import ModelChoice
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED
from eam_core.quality import psnr
from eam_core.restore_config import RestoreConfig


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    y, x = torch.meshgrid(torch.arange(40) / 40, torch.arange(48) / 48, indexing="ij")
    save_image(torch.stack([x, y, (x * 9).sin() / 2 + 0.5])[None], tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    ("cuda", "mps", "best"),
    [(True, False, "cuda"), (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device_is_taken(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, best: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device.best_device() == device.named_device("auto") == best
    assert device.named_device("cpu") == "cpu"
    assert usual_device() == choose_device("auto", "model") == torch.device(best)


@pytest.mark.parametrize("best", ["cuda", "mps", "cpu"])
def test_a_command_loads_its_model_on_the_best_device(monkeypatch: pytest.MonkeyPatch, best: str) -> None:
    asked = []

    def loaded(**parts: object) -> object:
        asked.append(parts["device"])
        raise KeyboardInterrupt

    monkeypatch.setattr(device, "best_device", lambda: best)
    monkeypatch.setattr(Restorer, "from_files", loaded)
    choice = ModelChoice(base="base", control="control", autoencoder="autoencoder")
    with pytest.raises(KeyboardInterrupt):
        choice.load(RestoreConfig.from_spec(EMBEDDED))
    assert asked == [best]


def test_the_precision_of_large_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.usual_dtype("cpu") == torch.float32
    assert device.usual_dtype("cuda:1") == torch.bfloat16
    for macos, dtype in (("13.6.1", torch.float32), ("14.0", torch.bfloat16), ("26.1", torch.bfloat16)):
        with apple_gpu(monkeypatch, macos):
            assert device.usual_dtype("mps") == dtype


def test_autocast_is_turned_off_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with device.without_autocast("cpu"):
            assert layer(x).dtype == torch.float32
    # torch 2.4 has none for MPS, and refuses to turn it off.
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", None)
    with device.without_autocast("mps"):
        assert layer(x).dtype == torch.float32


def test_the_stand_in_refuses_what_an_apple_gpu_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with apple_gpu(monkeypatch):
        there = torch.ones(3, device="mps")
        assert isinstance(there + 1, AppleTensor) and there.device.type == "mps"
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(3, dtype=torch.float64).to("mps")
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert torch.equal(there.cpu(), torch.ones(3))


@pytest.mark.parametrize("color_fix", ["wavelet", "adain", "lab", "none"])
def test_a_restoration_on_a_gpu_without_float64_is_that_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, photo: Path, color_fix: str
) -> None:
    image = load_image(photo).rgb
    config = RestoreConfig.from_spec(EMBEDDED, scale=4, tile=128, overlap=64, color_fix=color_fix)
    expected = Restorer.embedded().restore(image, config)
    with apple_gpu(monkeypatch):
        restorer = Restorer.embedded("mps")
        assert all(isinstance(weight.data, AppleTensor) for weight in restorer.model.parameters())
        # Convolutions lie otherwise in memory on a CPU, see autoencoder.py.
        torch.testing.assert_close(restorer.restore(image, config).cpu(), expected, atol=2e-5, rtol=0)


def test_the_command_line_uses_it_unasked(monkeypatch: pytest.MonkeyPatch, photo: Path) -> None:
    assert main(["upscale", str(photo), str(photo.with_name("cpu.png")), "--scale", "2"]) == 0
    seen = []
    whole = nn.Module.__call__

    def call(module: nn.Module, *args: object, **kwargs: object) -> object:
        seen.append(type(args[0]))
        return whole(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", call)
    with apple_gpu(monkeypatch):
        assert main(["upscale", str(photo), str(photo.with_name("gpu.png")), "--scale", "2"]) == 0
    assert AppleTensor in seen
    difference = load_image(photo.with_name("cpu.png")).rgb - load_image(photo.with_name("gpu.png")).rgb
    assert difference.abs().max() <= 1.001 / 255


def test_figures_of_pictures_on_it(monkeypatch: pytest.MonkeyPatch, photo: Path) -> None:
    image = load_image(photo).rgb
    other = (image * 0.9 + 0.02).clamp(0, 1)
    expected = [measure(other, image) for measure in (report.psnr_to_input, report.color_shift, psnr)]
    with apple_gpu(monkeypatch):
        pair = (other.to("mps"), image.to("mps"))
        assert [measure(*pair) for measure in (report.psnr_to_input, report.color_shift, psnr)] == expected
