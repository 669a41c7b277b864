"""How large tiles are: no larger than their number and overlap ask for, so that little is computed twice."""

import math


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
