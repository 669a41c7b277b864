"""PSNR and SSIM on luma, as super-resolution papers report them, in memory that does not grow with the picture."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .device import in_float64

# SSIM's window (Wang et al. 2004, section III-C): a gaussian of 11 x 11 pixels.
SSIM_WINDOW = 11
_SSIM_DEVIATION = 1.5
# The paper's K1 and K2 for grey levels up to 255.
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# ITU-R BT.601: R, G and B in [0, 1] to Y in [16, 235].
_LUMA, _LUMA_OFFSET = (65.481, 128.553, 24.966), 16.0
# Strips of about so many pixels are measured one after the other, in float64.
_STRIP_PIXELS = 2**19


def luma(image: Tensor) -> Tensor:
    """Return the Y of YCbCr (ITU-R BT.601).

    Args:
        image: RGB [B,3,H,W], [0,1].

    Returns:
        [B,H,W], grey levels from 16 to 235, not rounded; dtype of the image.
    """
    return torch.einsum("c,bchw->bhw", torch.tensor(_LUMA).to(image), image) + _LUMA_OFFSET


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio on Y, where the peak is 255.

    Args:
        image: RGB [B,3,H,W], [0,1].
        reference: same shape.

    Returns:
        dB [B], float64, on the CPU; infinite for equal pictures, NaN where a value is NaN.

    Raises:
        ValueError: the shapes differ or are not [B,3,H,W].
    """
    _check_pair(image, reference)

    def squares(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().sum()

    num_pixels = image.shape[-2] * image.shape[-1]
    return -10 * torch.log10(_sums(image, reference, squares, halo=0) / (num_pixels * 255**2))


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity on Y (Wang et al. 2004, Eq. 13), which is rounded to whole grey levels.

    Windows that reach over a border are left out, and negative contrast-structure terms count as 0, as in pyiqa.

    Args:
        image: RGB [B,3,H,W], [0,1], sides of at least SSIM_WINDOW.
        reference: same shape.

    Returns:
        [B] in [0,1], float64, on the CPU; 1 for equal pictures, NaN where a value is NaN.

    Raises:
        ValueError: the shapes differ, are not [B,3,H,W], or a side is shorter than the window.
    """
    _check_pair(image, reference)
    height, width = image.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"expected sides of at least {SSIM_WINDOW} pixels, got {width} x {height}; use psnr alone")
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-offset.square() / (2 * _SSIM_DEVIATION**2))
    window /= window.sum()

    def similarity(one: Tensor, other: Tensor) -> Tensor:
        return _ssim_map(one.round(), other.round(), window).sum()

    sums = _sums(image, reference, similarity, halo=SSIM_WINDOW - 1)
    return sums / ((height - SSIM_WINDOW + 1) * (width - SSIM_WINDOW + 1))


def _ssim_map(image: Tensor, reference: Tensor, window: Tensor) -> Tensor:
    taps = window.tolist()

    def blur(values: Tensor) -> Tensor:
        for dim in (0, 1):
            length = values.shape[dim] - SSIM_WINDOW + 1
            blurred = values.narrow(dim, 0, length) * taps[0]
            for start, weight in enumerate(taps[1:], start=1):
                blurred.add_(values.narrow(dim, start, length), alpha=weight)
            values = blurred
        return values

    mean, mean_ref = blur(image), blur(reference)
    product = mean * mean_ref
    squares = mean.square() + mean_ref.square()
    covariance = blur(image * reference) - product
    variances = blur(image.square() + reference.square()) - squares
    structure = ((2 * covariance + _C2) / (variances + _C2)).relu()
    return (2 * product + _C1) / (squares + _C1) * structure


def _sums(image: Tensor, reference: Tensor, measure: Callable[[Tensor, Tensor], Tensor], halo: int) -> Tensor:
    """Add up a measure of the lumas of both pictures over strips of rows; strips share `halo` rows. Returns [B]."""
    totals = []
    for pair in zip(image, reference):
        parts = [measure(*(luma(in_float64(side[None, :, rows]))[0] for side in pair)) for rows in _strips(image, halo)]
        totals.append(torch.stack(parts).sum().cpu())
    return torch.stack(totals) if totals else torch.zeros(0, dtype=torch.float64)


def _strips(image: Tensor, halo: int) -> Iterator[slice]:
    height, width = image.shape[-2:]
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height - halo, rows):
        yield slice(top, min(top + rows + halo, height))


def _check_pair(image: Tensor, reference: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape[-2:]:
        raise ValueError(f"expected a picture of shape [B,3,H,W], got {tuple(image.shape)}; pass RGB in BCHW order")
    if image.shape != reference.shape:
        raise ValueError(
            f"expected a reference of the picture's shape {tuple(image.shape)}, got {tuple(reference.shape)}; "
            "resize one of them first"
        )
