"""PSNR and SSIM: known values, parity with pyiqa, and memory that does not grow with the picture."""

import importlib.util
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eam_core import quality
from eam_core.quality import luma, psnr, ssim


def pictures(height: int = 60, width: int = 84, count: int = 2, seed: int = 0) -> Tensor:
    """Smooth random pictures on the grid of 8 bits."""
    coarse = torch.rand(count, 3, 6, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return smooth.mul(255).round() / 255


def noisy(image: Tensor, level: float) -> Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    return (image + level * noise).clamp(0, 1)


def test_luma_spans_the_range_of_bt601() -> None:
    colours = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    levels = luma(colours[:, :, None, None]).flatten()
    assert torch.allclose(levels, torch.tensor([16, 235, 81.481, 144.553, 40.966]))


def test_psnr_of_a_known_step() -> None:
    grey = torch.full((1, 3, 12, 20), 0.5)
    brighter = grey + 10 / 255
    assert psnr(brighter, grey).item() == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)), abs=1e-4)


def test_equal_pictures_and_broken_ones() -> None:
    image = pictures()
    assert psnr(image, image).tolist() == [math.inf] * 2
    assert ssim(image, image).tolist() == pytest.approx([1, 1], abs=1e-12)
    broken = image.clone()
    broken[1, 0, 3, 3] = math.nan
    for scores in (psnr(broken, image), ssim(broken, image)):
        assert [score.isnan().item() for score in scores] == [False, True]


def test_scores_fall_as_noise_grows() -> None:
    image = pictures()
    for measure in (psnr, ssim):
        scores = torch.stack([measure(noisy(image, level), image) for level in (0.01, 0.05, 0.2)])
        assert (scores.diff(dim=0) < 0).all()


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa is not installed")
@pytest.mark.parametrize("level", [0.01, 0.1, 0.5])
def test_scores_are_those_of_pyiqa(level: float) -> None:
    from train.metrics import luma_metric

    image = pictures(seed=3)
    worse = noisy(image, level)
    assert torch.allclose(psnr(worse, image).float(), luma_metric("psnr")(worse, image), atol=2e-3)
    assert torch.allclose(ssim(worse, image), luma_metric("ssim")(worse, image).double(), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_strips_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, worse = pictures(), noisy(pictures(), 0.05)
    whole = psnr(worse, image), ssim(worse, image)
    monkeypatch.setattr(quality, "_STRIP_PIXELS", rows * image.shape[-1])
    assert torch.allclose(psnr(worse, image), whole[0], rtol=1e-12)
    assert torch.allclose(ssim(worse, image), whole[1], rtol=1e-12)


class LargestResult(TorchDispatchMode):
    """Note the most elements that any operation's result has, views of the picture left out."""

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.elements, self.picture = 0, picture.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() != self.picture:
            self.elements = max(self.elements, result.numel())
        return result


def test_memory_follows_the_strip_and_not_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(1, 3, 1000, 200)
    monkeypatch.setattr(quality, "_STRIP_PIXELS", 20 * 200)
    for measure, rows in ((psnr, 20), (ssim, 30)):
        with LargestResult(image) as largest:
            measure(image, image)
        assert 0 < largest.elements <= 3 * rows * 200


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 1, 12, 12), (1, 3, 12, 13), (2, 3, 12, 12)])
def test_pairs_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="expected a"):
            measure(torch.zeros(1, 3, 12, 12), torch.zeros(shape))


def test_ssim_needs_room_for_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11 pixels, got 10 x 12"):
        ssim(torch.zeros(1, 3, 12, 10), torch.zeros(1, 3, 12, 10))
