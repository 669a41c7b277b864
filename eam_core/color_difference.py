"""CIEDE2000: how different two colours look."""

import torch
from torch import Tensor

_SEVENTH = 25.0**7


def ciede2000(lab: Tensor, reference: Tensor) -> Tensor:
    """Return the CIEDE2000 colour difference (CIE 142-2001; steps as in Sharma, Wu and Dalal 2005).

    Args:
        lab: CIE Lab [B,3,...].
        reference: same shape.

    Returns:
        Delta E [B,...]: 0 for equal colours; about 1 is just visible side by side.

    Raises:
        ValueError: the shapes differ or the second dimension is not 3.
    """
    if lab.ndim < 2 or lab.shape[1] != 3 or lab.shape != reference.shape:
        got = f"{tuple(lab.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"expected two Lab tensors of one shape [B,3,...], got {got}; resize one of them first")
    (l1, a1, b1), (l2, a2, b2) = lab.unbind(1), reference.unbind(1)
    # Greys are less neutral to the eye than a* says: stretch it for weak chroma.
    mean_chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1 + 0.5 * (1 - _saturating(mean_chroma))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.rad2deg(torch.atan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn, mean_hue = _hues(h1, h2, c1 * c2 == 0)
    hue = 2 * (c1 * c2).sqrt() * torch.sin(torch.deg2rad(turn) / 2)
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    off_middle = (mean_l - 50).square()
    scale_l = 1 + 0.015 * off_middle / (20 + off_middle).sqrt()
    scale_c = 1 + 0.045 * mean_c
    scale_h = 1 + 0.015 * mean_c * _hue_weight(mean_hue)
    around_blue = 30 * torch.exp(-((mean_hue - 275) / 25).square())
    rotation = -torch.sin(torch.deg2rad(2 * around_blue)) * 2 * _saturating(mean_c)
    lightness, chroma, hue = (l2 - l1) / scale_l, (c2 - c1) / scale_c, hue / scale_h
    # Rounding may leave a tiny negative sum for colours that are all but equal.
    return (lightness.square() + chroma.square() + hue.square() + rotation * chroma * hue).clamp(min=0).sqrt()


def _saturating(chroma: Tensor) -> Tensor:
    seventh = chroma**7
    return (seventh / (seventh + _SEVENTH)).sqrt()


def _hues(h1: Tensor, h2: Tensor, grey: Tensor) -> tuple[Tensor, Tensor]:
    """Return the short way from one hue to the other and the hue in the middle of it, in degrees."""
    turn = (h2 - h1 + 180) % 360 - 180
    # A grey has no hue, so there is no way between them, and the sum stands for the other's hue.
    return torch.where(grey, 0, turn), torch.where(grey, h1 + h2, (h1 + turn / 2) % 360)


def _hue_weight(hue: Tensor) -> Tensor:
    def wave(factor: float, offset: float) -> Tensor:
        return torch.cos(torch.deg2rad(factor * hue + offset))

    return 1 - 0.17 * wave(1, -30) + 0.24 * wave(2, 0) + 0.32 * wave(3, 6) - 0.20 * wave(4, -63)
