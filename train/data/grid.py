"""The most detailed crops of a picture, chosen from a grid of places."""

import math

import numpy as np

from eam_core.errors import ImageError
from train.data.crops import laplacian


def detailed_crops(pixels: np.ndarray, name: str, *, size: int, most: int, min_detail: float) -> list[np.ndarray]:
    """Choose among places half a crop apart the most detailed ones that do not overlap.

    Args:
        pixels: uint8 [H,W,3].
        name: what to call the picture in a message.
        size: edge of a crop in pixels.
        most: how many crops at most.
        min_detail: mean |Laplacian| in grey levels that a crop must reach.

    Returns:
        Crops [size,size,3], most detailed first, at least one.

    Raises:
        ImageError: the picture is too small or nowhere detailed enough.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < size:
        raise ImageError(f"{name}: expected at least {size} x {size} pixels for a crop, got {width} x {height}.")
    # Sums over all rectangles from the corner give every place's mean at once.
    sums = np.pad(laplacian(pixels).astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inner = size - 2

    def detail(top: int, left: int) -> float:
        bottom, right = top + inner, left + inner
        return float(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]) / inner**2

    places = [(detail(top, left), top, left) for top in _steps(height, size) for left in _steps(width, size)]
    if max(places)[0] < min_detail:
        raise ImageError(f"{name}: expected a crop with a detail of {min_detail:g}, the best has {max(places)[0]:.2f}.")
    chosen: list[tuple[int, int]] = []
    for value, top, left in sorted(places, key=lambda place: (-place[0], *place[1:])):
        apart = all(abs(top - other) >= size or abs(left - beside) >= size for other, beside in chosen)
        if apart and value >= min_detail and len(chosen) < most:
            chosen.append((top, left))
    return [pixels[top : top + size, left : left + size] for top, left in chosen]


def _steps(edge: int, size: int) -> list[int]:
    """Spread places evenly from border to border, at most half a crop apart."""
    count = math.ceil((edge - size) / (size / 2)) + 1
    return [round(i * (edge - size) / max(count - 1, 1)) for i in range(count)]
