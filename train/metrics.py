"""Picture quality metrics by their pyiqa names, offline: ST-LPIPS from its wheel's weights, PSNR and SSIM on luma."""

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from eam_core.errors import EAMError

ST_LPIPS_TRUNKS = {"stlpips": "alex", "stlpips-vgg": "vgg"}
LUMA_METRICS = ("psnr", "ssim")


class MetricError(EAMError):
    """A metric's package or weights are not installed."""


# Declarations end with the object that made them, so it is kept.
_torchvision_stubs: list[torch.library.Library] = []


def _declare_missing_torchvision_operators() -> None:
    # The compiled operators of a CUDA build of torchvision cannot be loaded beside a CPU-only torch; its import
    # then fails because it describes nms and qnms. Declaring the two is enough: no metric runs them.
    folder = package_folder("torchvision", "torchvision")
    for library in folder.glob("_C.*"):
        with suppress(OSError):
            torch.ops.load_library(library)
    if hasattr(torch.ops.torchvision, "nms"):
        return
    stubs = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        stubs.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_stubs.append(stubs)


def package_folder(package: str, requirement: str) -> Path:
    """Find an installed package without importing it.

    Args:
        package: name it is imported by.
        requirement: what pip is to install, for the message.

    Raises:
        MetricError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MetricError(f"expected the package {requirement}, found none; run: pip install --no-deps {requirement}")
    return Path(spec.origin).parent


def import_pyiqa() -> ModuleType:
    """Import pyiqa, also where torchvision's compiled operators do not fit torch."""
    package_folder("pyiqa", "pyiqa==0.1.16")
    _declare_missing_torchvision_operators()
    import pyiqa

    return pyiqa


class _PerImage(nn.Module):
    """A frozen full-reference network that returns one number per image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Convolutions run an eighth faster in this layout.
        self.network = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        return self.network(images, references).flatten()


def perceptual_metric(name: str) -> nn.Module:
    """Load ST-LPIPS (Ghildyal and Liu, ECCV 2022), also as a loss: gradients reach the images, never the network.

    Its scores are not comparable with published LPIPS. Train with "stlpips-vgg" and score with "stlpips", so that what
    is reported was not what was optimised.

    Args:
        name: "stlpips" (AlexNet trunk) or "stlpips-vgg", as pyiqa calls them.

    Returns:
        Module: (images [B,3,H,W], references [B,3,H,W], both in [0,1]) -> distance [B], 0 for equal images.

    Raises:
        ValueError: another name.
        MetricError: pyiqa or stlpips-pytorch is not installed.
    """
    if name not in ST_LPIPS_TRUNKS:
        raise ValueError(f"expected a perceptual metric of {tuple(ST_LPIPS_TRUNKS)}, got {name!r}")
    trunk = ST_LPIPS_TRUNKS[name]
    folder = package_folder("stlpips_pytorch", "stlpips-pytorch==0.0.2")
    network = import_pyiqa().create_metric(name, device="cpu", pretrained=False).net
    weights = folder / "weights" / "vST0.0" / f"{trunk}_shift_tolerant.pth"
    result = network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
    # The network lists its linear layers twice, as lin0 and as lins.0; the file holds them once.
    missing = [key for key in result.missing_keys if not key.startswith("lins.")]
    if missing or result.unexpected_keys:
        raise MetricError(
            f"expected the weights of {name} in {weights}, got other keys; install stlpips-pytorch==0.0.2"
        )
    return _PerImage(network)


def luma_metric(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Load PSNR or SSIM on the Y channel of YCbCr, as super-resolution papers report them.

    Args:
        name: "psnr" or "ssim".

    Returns:
        Function (images [B,3,H,W], references [B,3,H,W], both in [0,1]) -> score [B].
    """
    if name not in LUMA_METRICS:
        raise ValueError(f"expected a luma metric of {LUMA_METRICS}, got {name!r}")
    metric = import_pyiqa().create_metric(name, device="cpu", test_y_channel=True, color_space="ycbcr")
    return lambda images, references: metric(images, references).flatten()
