"""Square crops of a picture: at native or half size, flipped and turned, where there is detail."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from eam_core.images import resize
from train.seeding import generator

HALF_SIZE_ONE_IN = 3


def laplacian(pixels: np.ndarray) -> np.ndarray:
    """Measure fine detail per pixel as the absolute Laplacian of the grey picture.

    Args:
        pixels: uint8 [H,W,3].

    Returns:
        float32 [H-2,W-2], in grey levels.
    """
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return np.abs(around - 4 * grey[1:-1, 1:-1])


def training_crop(pixels: np.ndarray, size: int, seed: int, *, tries: int, turns: int) -> Tensor:
    """Cut one crop; a third, where they fit, are of twice the size and halved.

    Args:
        pixels: uint8 [H,W,3], both edges at least `size`.
        size: edge of the crop in pixels.
        seed: of the sample; every draw comes from it.
        tries: places drawn; the one with the largest mean |Laplacian| is taken.
        turns: how many quarter turns to draw from; 1 leaves the picture upright.

    Returns:
        uint8 [3,size,size].
    """
    dice = generator(seed, "crop")

    def draw(stop: int) -> int:
        return int(torch.randint(stop, (), generator=dice))

    height, width = pixels.shape[:2]
    factor = 2 if draw(HALF_SIZE_ONE_IN) == 0 and min(height, width) >= 2 * size else 1
    crop = _most_detailed(pixels, size * factor, tries, draw)
    crop = crop if factor == 1 else _shrink(crop, size)
    if draw(2):
        crop = crop.flip(-1)
    return crop.rot90(draw(turns), (-2, -1)).contiguous()


def fixed_crop(pixels: np.ndarray, size: int) -> Tensor:
    """Cut the middle of a picture: uint8 [H,W,3] to [3,size,size]."""
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return _channels_first(pixels[top : top + size, left : left + size])


def _most_detailed(pixels: np.ndarray, side: int, tries: int, draw: Callable[[int], int]) -> Tensor:
    height, width = pixels.shape[:2]
    places = [(draw(height - side + 1), draw(width - side + 1)) for _ in range(tries)]
    crops = [pixels[top : top + side, left : left + side] for top, left in places]
    best = max(crops, key=lambda crop: laplacian(crop).mean()) if tries > 1 else crops[0]
    return _channels_first(best)


def _shrink(crop: Tensor, size: int) -> Tensor:
    return resize(crop[None].float() / 255, (size, size))[0].mul(255).round().to(torch.uint8)


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
