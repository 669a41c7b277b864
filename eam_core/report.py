"""Measures of one restoration, from its result and its input alone."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .color import srgb_to_lab
from .color_difference import ciede2000
from .device import in_float64
from .errors import ImageError
from .images import resize
from .model.autoencoder import DOWNSCALE
from .quality import SSIM_WINDOW, ssim
from .seams import seam_ratio
from .tiling import TileGrid

State = Literal["ok", "not finite", "black", "one color"]

# The result repeats its raster after one token of the transformer.
RASTER = 2 * DOWNSCALE
# Colours are compared between blocks of so many pixels of the input: detail and noise average out.
COLOR_BLOCK = 16
PSNR_LIMIT = 80.0
# A picture darker than this on average is black, one that varies less has one colour, unless its input is like that.
_DARK, _LIT, _FLAT, _VARIED = 0.01, 0.03, 0.004, 0.015


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What a result measures against its input; None is what cannot be measured.

    Attributes:
        width, height: of the result in pixels.
        input_width, input_height: of the input in pixels.
        state: what is wrong with the values themselves.
        not_finite: share of values that are NaN or infinite, in [0, 1].
        psnr: dB between the reduced result and the input, see `psnr_to_input`.
        ssim: of the reduced result and the input on luma, in [0, 1].
        color_shift: CIEDE2000, see `color_shift`.
        seams: see `seams.seam_ratio`.
        num_tiles: of the grid; 0 without one.
    """

    width: int
    height: int
    input_width: int
    input_height: int
    state: State
    not_finite: float = 0.0
    psnr: float | None = None
    ssim: float | None = None
    color_shift: float | None = None
    seams: float | None = None
    num_tiles: int = 0

    @property
    def scale(self) -> float:
        """Enlargement of a side."""
        return math.sqrt(self.width * self.height / (self.input_width * self.input_height))


def check_pair(restored: Tensor, original: Tensor) -> None:
    """Refuse results [B,3,H,W] that cannot come from the inputs [B or 1,3,h,w].

    Raises:
        ImageError: their numbers do not fit, a result is smaller than its input, or has another shape.
    """
    if len(original) not in (1, len(restored)) or 0 in (len(restored), len(original)):
        raise ImageError(
            f"expected one original or as many as restored images, got {len(original)} for {len(restored)}; "
            "connect the batch that was restored"
        )
    (height, width), (low_height, low_width) = restored.shape[-2:], original.shape[-2:]
    sizes = f"{width} x {height} from {low_width} x {low_height}"
    if height < low_height or width < low_width:
        raise ImageError(
            f"expected a restored image at least as large as its original, got {sizes} (width x height); check that "
            "the two are not connected the wrong way round"
        )
    scale = math.sqrt(height * width / (low_height * low_width))
    # The graph restores at whole latents, so a side may be off by a part of one.
    if any(
        abs(side - scale * low) > max(DOWNSCALE, 0.01 * side)
        for side, low in ((height, low_height), (width, low_width))
    ):
        raise ImageError(
            f"expected a restored image of its original's proportions, got {sizes} (width x height); connect the "
            "picture that was restored, cropped as it was then"
        )


def measure(restored: Tensor, original: Tensor, grid: TileGrid | None = None) -> Measures:
    """Measure one result against its input.

    Args:
        restored: [1,3,H,W], RGB, [0,1].
        original: [1,3,h,w], no larger.
        grid: the sampler's tiles in pixels of the result; None leaves seams unmeasured.

    Raises:
        ImageError: see `check_pair`.
    """
    check_pair(restored, original)
    (height, width), (low_height, low_width) = restored.shape[-2:], original.shape[-2:]
    shape = {"width": width, "height": height, "input_width": low_width, "input_height": low_height}
    not_finite = 1 - restored.isfinite().float().mean().item()
    num_tiles = 0 if grid is None else len(grid.boxes)
    if not_finite or not original.isfinite().all():
        return Measures(**shape, state="not finite", not_finite=not_finite, num_tiles=num_tiles)
    reduced = resize(restored, (low_height, low_width))
    return Measures(
        **shape,
        state=_state(restored, original),
        psnr=psnr_to_input(reduced, original),
        ssim=ssim(reduced, original).item() if min(low_height, low_width) >= SSIM_WINDOW else None,
        color_shift=color_shift(restored, original),
        seams=None if grid is None else seam_ratio(restored, grid, RASTER),
        num_tiles=num_tiles,
    )


def psnr_to_input(reduced: Tensor, original: Tensor) -> float:
    """Return the PSNR in RGB between a reduced result and the input, as the evaluation's psnr-lr.

    Args:
        reduced: the result at the input's size, by `images.resize`: antialiased bicubic (a = -0.5); [1,3,h,w], [0,1].
        original: [1,3,h,w], [0,1].

    Returns:
        dB, at most 80.
    """
    error = torch.mean(in_float64(reduced - original).square()).item()
    return 10 * math.log10(1 / max(error, 10 ** (-PSNR_LIMIT / 10)))


def color_shift(restored: Tensor, original: Tensor) -> float:
    """Return the mean colour difference of the low frequencies: of averages over blocks of 16 pixels of the input.

    CIEDE2000 and not CIE76: the plain distance in Lab counts shifts of saturated colours several times as large as
    they look, so a photo of a sunset would seem worse restored than one of a street.

    Args:
        restored: [1,3,H,W], sRGB, [0,1].
        original: [1,3,h,w], sRGB, [0,1].

    Returns:
        Mean CIEDE2000: 0 for equal, about 1 is just visible side by side.
    """
    height, width = (max(1, round(side / COLOR_BLOCK)) for side in original.shape[-2:])
    averages = (F.adaptive_avg_pool2d(image, (height, width)) for image in (restored, original))
    return ciede2000(*(srgb_to_lab(in_float64(image).clamp(0, 1)) for image in averages)).mean().item()


def _state(restored: Tensor, original: Tensor) -> State:
    if restored.mean() < _DARK and original.mean() > _LIT:
        return "black"
    spread, spread_before = (image.std(dim=(2, 3)).max() for image in (restored, original))
    return "one color" if spread < _FLAT and spread_before > _VARIED else "ok"
