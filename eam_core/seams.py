"""How visible the borders between tiles are: steps across them over steps elsewhere."""

import torch
from torch import Tensor

from .tiling import TileGrid


def tile_borders(grid: TileGrid) -> tuple[list[int], list[int]]:
    """Return the rows and the columns of a picture at which a tile begins or ends inside it, increasing."""
    axes = ((grid.tops, grid.tile_height, grid.height), (grid.lefts, grid.tile_width, grid.width))
    rows, columns = (
        sorted({edge for start in starts for edge in (start, start + length) if 0 < edge < side})
        for starts, length, side in axes
    )
    return rows, columns


def steps(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean absolute steps between neighbouring rows [H - 1] and columns [W - 1], in grey levels of 255.

    Entry i lies between pixel i and pixel i + 1, so a border at pixel p is entry p - 1.

    Args:
        picture: [B,C,H,W], [0,1].
    """
    rows, columns = (255 * turned.diff(dim=-1).abs().mean((0, 1, 2)) for turned in (picture.mT, picture))
    return rows, columns


def seam_ratio(picture: Tensor, grid: TileGrid, period: int) -> float | None:
    """Return the mean step at the borders of tiles over the mean step where there is none.

    A border is compared with the other places of its kind: those a multiple of `period` away from it. Decoders and
    JPEG make steps of their own at every so many pixels, which would otherwise pass for seams.

    Args:
        picture: [B,C,H,W], [0,1].
        grid: where the tiles lie in it, in pixels.
        period: after how many pixels the picture's own raster repeats.

    Returns:
        About 1 where no seam shows; None without a border, without another place, or in a picture without steps.

    Raises:
        ValueError: the grid is of another size.
    """
    if picture.shape[-2:] != (grid.height, grid.width):
        got = f"{tuple(picture.shape[-2:])} for a grid of {(grid.height, grid.width)}"
        raise ValueError(f"expected a picture of the grid's size, got {got}; scale the grid")
    at, elsewhere = [], []
    for profile, borders in zip(steps(picture), tile_borders(grid)):
        edges = range(1, len(profile) + 1)
        for border in borders:
            alike = [edge - 1 for edge in edges[(border - 1) % period :: period] if edge not in borders]
            if alike:
                at.append(profile[border - 1])
                elsewhere.append(profile[alike].mean())
    expected = torch.stack(elsewhere).mean().item() if elsewhere else 0.0
    return torch.stack(at).mean().item() / expected if expected else None
