"""Blur kernels, the filter that applies them and the sharpener of the Real-ESRGAN degradation."""

import math
from functools import lru_cache

import torch
from torch import Tensor

KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
PADDED_SIZE = 21
SHARPEN_TAPS = 51


def _check_size(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"expected an odd kernel size of at least 1, got {size}; use 7, 9, ... 21")


def blur_kernel(
    kind: str, size: int, sigma_x: float, sigma_y: float | None = None, angle: float = 0.0, beta: float = 1.0
) -> Tensor:
    """Build one Gaussian, generalized Gaussian or plateau kernel (Real-ESRGAN section 3.1).

    With p = (column, row) from the centre and d = p' S^-1 p, S = R diag(sigma_x^2, sigma_y^2) R':
    Gaussian exp(-d/2), generalized exp(-d^beta / 2), plateau 1 / (1 + d^beta).

    Args:
        kind: one of KERNEL_KINDS; the iso kinds use sigma_x alone.
        size: odd number of taps.
        sigma_x: width in pixels along the first axis, above 0.
        sigma_y: width along the second axis; sigma_x if left out.
        angle: rotation in radians.
        beta: shape exponent of the generalized and plateau kinds.

    Returns:
        float64 [size, size], sum 1.

    Raises:
        ValueError: unknown kind, even size, or a width that is not positive.
    """
    if kind not in KERNEL_KINDS:
        raise ValueError(f"expected a kernel kind of {KERNEL_KINDS}, got {kind!r}")
    _check_size(size)
    isotropic = not kind.endswith("aniso")
    sigma_y = sigma_x if sigma_y is None or isotropic else sigma_y
    if sigma_x <= 0 or sigma_y <= 0:
        raise ValueError(f"expected kernel widths above 0 pixels, got {sigma_x} and {sigma_y}")
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    x, y = axis[None, :], axis[:, None]
    cos, sin = (1.0, 0.0) if isotropic else (math.cos(angle), math.sin(angle))
    d = ((cos * x + sin * y) / sigma_x) ** 2 + ((cos * y - sin * x) / sigma_y) ** 2
    if kind.startswith("plateau"):
        kernel = 1 / (1 + d**beta)
    else:
        kernel = torch.exp(-0.5 * (d**beta if kind.startswith("generalized") else d))
    return kernel / kernel.sum()


def _bessel_j1(x: Tensor) -> Tensor:
    # Bessel's integral by the trapezoid rule, exact to rounding for |x| < 60; torch.special.bessel_j1 errs by 4e-9.
    t = torch.linspace(0, math.pi, 65, dtype=torch.float64)
    return torch.trapezoid(torch.cos(t - x[..., None] * torch.sin(t)), t) / math.pi


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """Build a circular low-pass kernel, which rings as over-sharpened photos do (Real-ESRGAN Eq. 6).

    Args:
        size: odd number of taps.
        cutoff: cut-off frequency in radians per pixel, in (0, pi].

    Returns:
        float64 [size, size], sum 1.
    """
    _check_size(size)
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    radius = torch.hypot(axis[None, :], axis[:, None])
    centre = size // 2
    radius[centre, centre] = 1.0
    kernel = cutoff * _bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[centre, centre] = cutoff**2 / (4 * math.pi)
    return kernel / kernel.sum()


def pad_kernel(kernel: Tensor, size: int = PADDED_SIZE) -> Tensor:
    """Surround a kernel with zeros up to `size` x `size`, so that kernels of a batch can be stacked."""
    margin = (size - kernel.shape[-1]) // 2
    return torch.nn.functional.pad(kernel, [margin] * 4)


@lru_cache(maxsize=1024)
def _fast_length(length: int) -> int:
    """Return the next length whose only prime factors are 2, 3 and 5: Fourier transforms are quick there."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def _reflect_index(length: int, margin: int, device: torch.device) -> Tensor:
    """Index that pads an axis by reflection without repeating the edge, as often as a short axis needs."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-margin, length + margin, device=device) % period
    return torch.minimum(index, period - index)


def filter2d(images: Tensor, kernels: Tensor) -> Tensor:
    """Correlate each image with its own kernel under reflect padding, through the Fourier transform.

    The transform costs half of a grouped convolution at 21 taps and does not depend on the kernel's size.

    Args:
        images: [B,C,H,W], any size from 1x1.
        kernels: [B,K,K] or [1,K,K] for all, K odd.

    Returns:
        [B,C,H,W] in the dtype of `images`.
    """
    height, width = images.shape[-2:]
    taps = kernels.shape[-1]
    margin = taps // 2
    rows = _reflect_index(height, margin, images.device)
    columns = _reflect_index(width, margin, images.device)
    padded = images.index_select(-2, rows).index_select(-1, columns)
    shape = (_fast_length(height + taps - 1), _fast_length(width + taps - 1))
    spectrum = torch.fft.rfft2(padded, s=shape)
    response = torch.fft.rfft2(kernels.to(images), s=shape)[:, None]
    return torch.fft.irfft2(spectrum * response.conj(), s=shape)[..., :height, :width]


@lru_cache(maxsize=1)
def _sharpen_kernel() -> Tensor:
    # OpenCV's rule gives the width that belongs to a number of taps: 8.0 pixels here.
    return blur_kernel("iso", SHARPEN_TAPS, 0.3 * ((SHARPEN_TAPS - 1) / 2 - 1) + 0.8)


def sharpen(images: Tensor, weight: float = 0.5, threshold: float = 10.0) -> Tensor:
    """Sharpen edges with an unsharp mask that leaves flat regions alone (Real-ESRGAN section 3.4).

    Args:
        images: [B,C,H,W] in [0,1].
        weight: strength of the added detail, 0 leaves the image as it is.
        threshold: smallest difference to the blurred image that counts as an edge, in grey levels of 255.

    Returns:
        [B,C,H,W] in [0,1].
    """
    kernel = _sharpen_kernel()[None]
    residual = images - filter2d(images, kernel)
    mask = filter2d((residual.abs() * 255 > threshold).to(images.dtype), kernel)
    sharp = (images + weight * residual).clamp(0, 1)
    return images + mask * (sharp - images)
