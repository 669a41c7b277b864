"""Which tiles a network runs over: none larger than needed, and hardly overlapping while noise hides their borders."""

import math

from .tiling import MIN_TILE, TileGrid

_LEAST_SHARE = 0.75  # of the tile: smaller ones show the network too little of the picture


def fitting_tile(height: int, width: int, *, tile: int, overlap: int, align: int) -> int:
    """Return the smallest side of tiles that cover a picture with as many tiles as `tile` does.

    A picture of 2000 in tiles of 1024 that overlap by 48 takes three along each side; 704 is enough for three.

    Args:
        height, width: of the picture.
        tile: largest side, a multiple of align.
        overlap: least overlap of neighbours, below tile.
        align: what the side is a multiple of, and starts of tiles too.

    Returns:
        A multiple of align, at most tile; tile itself where one is enough.
    """
    stride = (tile - overlap) // align * align
    shared = tile - stride
    fits = []
    for side in (height, width):
        num = 1 + max(0, math.ceil((side - tile) / stride))
        fits.append(math.ceil((side + (num - 1) * shared) / (num * align)) * align if num > 1 else 0)
    return max(fits) or tile


def grid_of_call(grid: TileGrid, call: int, *, last: bool) -> TileGrid:
    """Return the tiles of one model call: only in the last step need they overlap as far as hides their borders.

    Every step before it takes away what the borders of the one before left behind, so these take tiles that just meet.
    Their number along each side alternates from call to call, and with it the places of their borders.

    Args:
        grid: of the last step.
        call: from 0.
        last: whether no step follows.

    Returns:
        Tiles of at most the grid's side, and of at least three quarters of it.
    """
    if last or len(grid.boxes) == 1:
        return grid
    sides = [side for side in (grid.height, grid.width) if side > grid.tile]
    numbers = [math.ceil(side / grid.tile) + call % 2 for side in sides]
    even = max(math.ceil(side / (number * grid.align)) for side, number in zip(sides, numbers))
    least = math.ceil(max(_LEAST_SHARE * grid.tile, MIN_TILE) / grid.align)
    tile = min(grid.tile, max(even, least) * grid.align)
    return TileGrid(height=grid.height, width=grid.width, tile=tile, overlap=0, align=grid.align)
