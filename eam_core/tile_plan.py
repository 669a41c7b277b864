"""Which tiles a network runs over: none larger than needed, and hardly overlapping while noise hides their borders."""

import math

from .tiling import MIN_TILE, TileGrid

BLEND_SIGMA = 0.15  # below, a step changes too little to take borders away; some schedules have many such steps
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
        fits.append(math.ceil((side + (num - 1) * shared) / (num * align)) * align)
    return max(fits) if max(height, width) > tile else tile


def overlapping_tiles(grid: TileGrid) -> TileGrid:
    """Return tiles for a step in which they overlap: as many as the grid's, and no larger than needed.

    Args:
        grid: of the largest tiles.

    Returns:
        Tiles of at least three quarters of the grid's side that overlap by at least as much. The grid itself where one
        tile covers the picture.
    """
    fitting = fitting_tile(grid.height, grid.width, tile=grid.tile, overlap=grid.overlap, align=grid.align)
    tile = max(fitting, _least(grid), grid.overlap + grid.align)
    return TileGrid(height=grid.height, width=grid.width, tile=tile, overlap=grid.overlap, align=grid.align)


def overlaps_in(sigma: float, last_sigma: float) -> bool:
    """Tell whether tiles overlap at a noise level: in the last step, and wherever little noise is left."""
    return sigma <= max(1.0001 * last_sigma, BLEND_SIGMA)


def meeting_tiles(grid: TileGrid, step: int) -> TileGrid:
    """Return tiles that hardly overlap, for a step after which noise is left to take their borders away.

    Their number along each side alternates from step to step, and with it the places of their borders.

    Args:
        grid: of the largest tiles.
        step: from 0.

    Returns:
        Tiles of at most the grid's side, and of at least three quarters of it. Those that overlap where borders would
        stay in their places, and where they are as cheap.
    """
    overlapping = overlapping_tiles(grid)
    both = [_just_meeting(grid, extra) for extra in (0, 1)]
    if not all(_moved(*tops) for tops in ((both[0].tops, both[1].tops), (both[0].lefts, both[1].lefts))):
        return overlapping
    chosen = both[step % 2]
    return chosen if chosen.num_pixels < overlapping.num_pixels else overlapping


def _just_meeting(grid: TileGrid, extra: int) -> TileGrid:
    sides = grid.height, grid.width
    # An axis that one tile covers now stays whole.
    units = [side if side <= grid.tile else side / (math.ceil(side / grid.tile) + extra) for side in sides]
    tile = min(grid.tile, max(_least(grid), math.ceil(max(units) / grid.align) * grid.align))
    return TileGrid(height=grid.height, width=grid.width, tile=tile, overlap=0, align=grid.align)


def _least(grid: TileGrid) -> int:
    return math.ceil(max(grid.tile * _LEAST_SHARE, MIN_TILE) / grid.align) * grid.align


def _moved(starts: list[int], others: list[int]) -> bool:
    return starts != others or len(starts) == 1
