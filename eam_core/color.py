"""Colour fix: give a restored image the colours of its low-resolution input while keeping its detail."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

ColorFix = Literal["none", "wavelet", "adain", "lab"]
COLOR_FIXES: tuple[ColorFix, ...] = get_args(ColorFix)

NUM_WAVELET_LEVELS = 5
_REACH = 2**NUM_WAVELET_LEVELS - 1  # pixels to each side that a pixel's low band depends on
ADAIN_EPS = 1e-5

# IEC 61966-2-1: linear sRGB to CIE XYZ under D65.
_RGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
# CIE 15: Lab's cube root turns into a straight line below (6/29)^3.
_LAB_DELTA = 6 / 29


def wavelet_color_fix(image: Tensor, reference: Tensor) -> Tensor:
    """Replace the image's low band by the reference's (wavelet reconstruction, StableSR, arXiv 2305.07015).

    The bands are those of an a-trous pyramid of five levels. Its high bands sum to the image less its low band.

    Args:
        image: restored image, [B,3,H,W], [0,1].
        reference: image whose colours are wanted, same shape, [0,1].

    Returns:
        [B,3,H,W], may leave [0,1].

    Raises:
        ValueError: the shapes differ or are not [B,3,H,W].
    """
    _check_pair(image, reference)
    return image + (_low_band(reference) - _low_band(image))


def adain_color_fix(image: Tensor, reference: Tensor) -> Tensor:
    """Give each channel the mean and standard deviation of the reference's (AdaIN, Huang & Belongie 2017, Eq. 8).

    Args:
        image: restored image, [B,3,H,W], [0,1].
        reference: image whose colours are wanted, same shape, [0,1].

    Returns:
        [B,3,H,W], may leave [0,1].

    Raises:
        ValueError: the shapes differ or are not [B,3,H,W].
    """
    _check_pair(image, reference)
    image_mean, image_std = _mean_std(image)
    reference_mean, reference_std = _mean_std(reference)
    return (image - image_mean) / image_std * reference_std + reference_mean


def lab_color_fix(image: Tensor, reference: Tensor) -> Tensor:
    """Replace the low band of a* and b* by the reference's and keep the image's own lightness L*.

    Args:
        image: restored image, [B,3,H,W], sRGB in [0,1].
        reference: image whose colours are wanted, same shape, sRGB in [0,1].

    Returns:
        [B,3,H,W], may leave [0,1] where the new chroma lies outside sRGB.

    Raises:
        ValueError: the shapes differ or are not [B,3,H,W].
    """
    _check_pair(image, reference)
    lightness, chroma = srgb_to_lab(image).split((1, 2), dim=1)
    chroma = chroma + (_low_band(srgb_to_lab(reference)[:, 1:]) - _low_band(chroma))
    return lab_to_srgb(torch.cat((lightness, chroma), dim=1))


def apply_color_fix(image: Tensor, reference: Tensor, method: ColorFix) -> Tensor:
    """Run the named colour fix and clamp its result.

    Args:
        image: restored image, [B,3,H,W], [0,1].
        reference: image whose colours are wanted, same shape, [0,1]; the low-resolution input enlarged to the image.
        method: "none" only clamps, the others name a function of this module.

    Returns:
        [B,3,H,W] in [0,1].

    Raises:
        ValueError: the method is unknown, or the shapes differ.
    """
    if method not in COLOR_FIXES:
        raise ValueError(f"expected a colour fix out of {', '.join(COLOR_FIXES)}, got {method!r}; name one of these")
    _check_pair(image, reference)
    if method != "none":
        image = _METHODS[method](image, reference)
    return image.clamp(0, 1)


def color_fix_in_place(image: Tensor, reference: Tensor, method: ColorFix, *, num_rows: int = 256) -> Tensor:
    """Do what `apply_color_fix` does in the image's own memory, strip by strip; the same but for rounding.

    Args:
        image: restored image, [B,3,H,W], [0,1]; overwritten.
        reference: see `apply_color_fix`; must not share the image's memory.
        method: see `apply_color_fix`.
        num_rows: height of a strip.

    Returns:
        The image.
    """
    if method == "none":
        return image.clamp_(0, 1)
    _check_pair(image, reference)
    if method == "adain":
        mean, std = _mean_std(image)
        wanted_mean, wanted_std = _mean_std(reference)
        return image.sub_(mean).div_(std).mul_(wanted_std).add_(wanted_mean).clamp_(0, 1)
    height, above = image.shape[-2], image[..., :0, :]
    for top in range(0, height, num_rows):
        bottom, below = min(top + num_rows, height), min(top + num_rows + _REACH, height)
        # The rows above are overwritten already; their originals were kept.
        strip = torch.cat((above, image[..., top:below, :]), dim=-2)
        first = top - above.shape[-2]
        above = strip[..., max(0, bottom - _REACH - first) : bottom - first, :].clone()
        fixed = apply_color_fix(strip, reference[..., first:below, :], method)
        image[..., top:bottom, :] = fixed[..., top - first : bottom - first, :]
    return image


def srgb_to_lab(image: Tensor) -> Tensor:
    """Convert sRGB to CIE Lab under D65 (IEC 61966-2-1, CIE 15).

    Args:
        image: [B,3,H,W], nominally [0,1]; values outside follow the straight part of both curves or extend the upper.

    Returns:
        [B,3,H,W]: L* in [0,100], a* and b* about [-128,127].
    """
    # The clamps keep pow off negative bases, whose NaN would reach gradients through where.
    linear = torch.where(image <= 0.04045, image / 12.92, ((image.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = _mix_channels(linear, _rgb_to_relative_xyz())
    line = xyz / (3 * _LAB_DELTA**2) + 4 / 29
    fx, fy, fz = torch.where(xyz > _LAB_DELTA**3, xyz.clamp(min=_LAB_DELTA**3) ** (1 / 3), line).unbind(dim=1)
    return torch.stack((116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)), dim=1)


def lab_to_srgb(lab: Tensor) -> Tensor:
    """Convert CIE Lab under D65 to sRGB, the inverse of `srgb_to_lab`.

    Args:
        lab: [B,3,H,W]: L* in [0,100], a*, b*.

    Returns:
        [B,3,H,W], outside [0,1] for colours that sRGB cannot show.
    """
    lightness, a, b = lab.unbind(dim=1)
    fy = (lightness + 16) / 116
    f = torch.stack((fy + a / 500, fy, fy - b / 200), dim=1)
    xyz = torch.where(f > _LAB_DELTA, f**3, 3 * _LAB_DELTA**2 * (f - 4 / 29))
    linear = _mix_channels(xyz, torch.linalg.inv(_rgb_to_relative_xyz()))
    curve = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, linear * 12.92, curve)


_METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wavelet": wavelet_color_fix,
    "adain": adain_color_fix,
    "lab": lab_color_fix,
}


def _check_pair(image: Tensor, reference: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"expected an image of shape [B,3,H,W], got {tuple(image.shape)}; pass RGB in BCHW order")
    if image.shape != reference.shape:
        raise ValueError(
            f"expected a reference of the image's shape {tuple(image.shape)}, got {tuple(reference.shape)}; "
            "resize the reference to the image first"
        )


def _low_band(image: Tensor) -> Tensor:
    """Blur with the binomial kernel (1 2 1)/4 in both directions, its taps 1, 2, 4, 8, 16 pixels apart in turn."""
    for level in range(NUM_WAVELET_LEVELS):
        step = 2**level
        padded = F.pad(image, (step, step, step, step), mode="replicate")
        # Few passes over memory, which is what this takes.
        rows = (padded[..., : -2 * step, :] + padded[..., 2 * step :, :]).add_(padded[..., step:-step, :], alpha=2)
        image = (rows[..., : -2 * step] + rows[..., 2 * step :]).add_(rows[..., step:-step], alpha=2).div_(16)
    return image


def _mean_std(image: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(image, dim=(2, 3), keepdim=True)
    return mean, (variance + ADAIN_EPS).sqrt()


def _rgb_to_relative_xyz() -> Tensor:
    matrix = torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)
    # Relative to this matrix's own white, so that greys get a* = b* = 0 exactly.
    return matrix / matrix.sum(dim=1, keepdim=True)


def _mix_channels(image: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("oc,bchw->bohw", matrix.to(image), image)
