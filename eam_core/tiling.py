"""Tiling: run a function over overlapping tiles and blend its results, with memory that follows the tile."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from .out_of_memory import OutOfMemory, free_unused, is_out_of_memory
from .tile_batch import TileBatch

Box = tuple[int, int, int, int]
"""(top, left, height, width)"""

MIN_TILE = 8
LEAST_TILE = 256
"""Side that tiles are not halved below when memory runs out; smaller ones show too little of a picture."""


@dataclass(frozen=True, kw_only=True)
class TileGrid:
    """Where the tiles of a picture lie: all of one size, evenly spread, flush with every border.

    Attributes:
        height: of the picture.
        width: of the picture.
        tile: side of a tile, at least 8, a multiple of align; an axis shorter than it gets one tile of its own length.
        overlap: least overlap of neighbours, 0 <= overlap <= tile - align.
        align: starts are multiples of it (2 is SD3's patch); only the last one, flush with the border, may not be.
    """

    height: int
    width: int
    tile: int
    overlap: int
    align: int = 2

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"expected a size of at least 1x1, got {self.height}x{self.width}; pass a picture")
        if self.align < 1 or self.tile < MIN_TILE or self.tile % self.align:
            raise ValueError(
                f"expected a tile of at least {MIN_TILE}, a multiple of {self.align}, got {self.tile}; use e.g. 64"
            )
        if not 0 <= self.overlap <= self.tile - self.align:
            raise ValueError(
                f"expected overlap in [0, {self.tile - self.align}] for a tile of {self.tile}, got {self.overlap}; "
                "a quarter of the tile is usual"
            )

    @property
    def tile_height(self) -> int:
        """Height of every tile."""
        return min(self.tile, self.height)

    @property
    def tile_width(self) -> int:
        """Width of every tile."""
        return min(self.tile, self.width)

    @property
    def tops(self) -> list[int]:
        """Tops of the rows of tiles, increasing."""
        return self._starts(self.height)

    @property
    def lefts(self) -> list[int]:
        """Left edges of the columns of tiles, increasing."""
        return self._starts(self.width)

    @property
    def boxes(self) -> list[Box]:
        """Boxes of all tiles, row by row."""
        return [(top, left, self.tile_height, self.tile_width) for top in self.tops for left in self.lefts]

    @property
    def num_pixels(self) -> int:
        """How many pixels all tiles have together, those counted twice that two tiles share."""
        return self.num_tiles * self.tile_pixels

    @property
    def tile_pixels(self) -> int:
        """How many pixels a tile has."""
        return self.tile_height * self.tile_width

    @property
    def num_tiles(self) -> int:
        """How many tiles there are."""
        return len(self.tops) * len(self.lefts)

    def scaled(self, scale: Fraction | int) -> "TileGrid":
        """Return the same tiles on a picture of another size.

        Args:
            scale: new size over old size.

        Returns:
            A grid whose boxes are this grid's times scale.

        Raises:
            ValueError: a box would not fall on whole pixels, or a tile would be smaller than 8.
        """
        stride = (self.tile - self.overlap) // self.align * self.align
        sizes = (self.height, self.width, self.tile, self.tile - stride, self.align)
        height, width, tile, overlap, align = (_scaled(length, Fraction(scale)) for length in sizes)
        return TileGrid(height=height, width=width, tile=tile, overlap=overlap, align=align)

    def halved(self, least: int) -> "TileGrid | None":
        """Return the same picture in tiles of half the side, with the overlap that suits them as in `presets`.

        Args:
            least: side that tiles do not fall below, a multiple of align.

        Returns:
            None where the tiles are as small as that already. A tile larger than the picture counts as the picture.
        """
        side = min(self.tile, -(-max(self.height, self.width) // self.align) * self.align)
        tile = max(least, -(-side // (2 * self.align)) * self.align)
        if tile >= side:
            return None
        overlap = min(self.overlap, max(tile // 4, self.overlap * tile // self.tile), tile - self.align)
        return TileGrid(height=self.height, width=self.width, tile=tile, overlap=overlap, align=self.align)

    def _starts(self, side: int) -> list[int]:
        last = side - self.tile
        if last <= 0:
            return [0]
        stride = (self.tile - self.overlap) // self.align * self.align
        num_gaps = math.ceil(last / stride)
        # Rounding up keeps every gap within the aligned stride, also the one before a last start that is not aligned.
        return [math.ceil(i * last / (num_gaps * self.align)) * self.align for i in range(num_gaps)] + [last]


def window(size: int, overlap: int) -> Tensor:
    """Return the weights across one tile: a gaussian, symmetric and above zero.

    It is as wide as the overlap lets it be: at a tile's last pixel its neighbour weighs 100 times as much, so no edge
    shows and the blend fills the overlap. Small overlaps get the usual deviation of a tenth of the tile.

    Args:
        size: of the tile along the axis.
        overlap: with its neighbours, below size.

    Returns:
        Weights [size], float32, on the CPU.
    """
    variance = max(0.01 * size**2, (size - overlap) * (overlap - 1) / (2 * math.log(100)))
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.exp(-(offset**2) / (2 * variance)).float()


def blend_weights(grid: TileGrid) -> tuple[Tensor, Tensor]:
    """Return the windows of a grid, normalised so that they sum to one at each pixel.

    The outer product of a tile's row and column is its weight.

    Returns:
        Weights of the rows of tiles [len(tops), tile_height] and of the columns [len(lefts), tile_width], float32,
        on the CPU.
    """
    return (
        _axis_weights(grid.height, grid.tile_height, grid.tops, grid.overlap),
        _axis_weights(grid.width, grid.tile_width, grid.lefts, grid.overlap),
    )


def tiled(
    fn: Callable[..., Tensor],
    x: Tensor,
    grid: TileGrid,
    *,
    extras: tuple[Tensor, ...] = (),
    tile_batch: int | TileBatch = 1,
    scale: Fraction | int = 1,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run fn tile by tile and blend the results, as at every sampling step (Mixture of Diffusers, Jimenez 2023).

    Args:
        fn: called as fn(tiles, *extra_tiles, boxes) with up to tile_batch tiles stacked tile-major along the batch
            axis (all samples of the first tile, then of the second) and their boxes; returns
            [len(boxes)*B, C_out, tile_height*scale, tile_width*scale].
        x: [B, C, H, W], of the grid's size.
        grid: where the tiles lie in x.
        extras: tensors cut along with x, of its batch and size.
        tile_batch: tiles per call, at least 1, or a TileBatch that several runs share, see there.
        scale: output size over input size.
        on_tile: called as (tiles done, tiles in all) after each call of fn; may raise to stop.

    Returns:
        [B, C_out, H*scale, W*scale], device and dtype of fn's results. One tile gives fn's result itself.

    Raises:
        ValueError: sizes do not fit the grid or each other.
        torch.OutOfMemoryError: even one tile does not fit.
    """
    _check_inputs(x, grid, extras)
    batch = tile_batch if isinstance(tile_batch, TileBatch) else TileBatch(tile_batch)
    out_grid = grid.scaled(scale)
    boxes = list(zip(grid.boxes, out_grid.boxes, _tile_weights(out_grid)))
    out, dtype, first = None, x.dtype, 0

    def run(num: int) -> Tensor:
        some = [box for box, _, _ in boxes[first : first + num]]
        return fn(*(_cut(tensor, some) for tensor in (x, *extras)), some)

    while first < len(boxes):
        result, num = batch.run(run, len(boxes) - first)
        in_boxes, out_boxes, weights = zip(*boxes[first : first + num])
        expected = (len(in_boxes) * x.shape[0], out_grid.tile_height, out_grid.tile_width)
        _check_shape(result, expected, "make fn return one result per tile, of scale times its size")
        if out is None:
            dtype = result.dtype
            # Sums of half-precision parts would lose digits at every overlap.
            sum_dtype = torch.promote_types(dtype, torch.float32)
            out = result.new_zeros((x.shape[0], result.shape[1], out_grid.height, out_grid.width), dtype=sum_dtype)
        for (top, left, height, width), (row, column), part in zip(out_boxes, weights, result.split(x.shape[0])):
            weight = (row[:, None] * column).to(out.device)
            out[..., top : top + height, left : left + width] += weight * part
        first += len(in_boxes)
        if on_tile is not None:
            on_tile(first, len(boxes))
    assert out is not None
    return out.to(dtype)


def tiled_map(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    tile: int,
    overlap: int,
    scale: Fraction | int,
    tile_batch: int = 1,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run a function that changes size over tiles: an autoencoder's encoder (scale 1/8) or decoder (scale 8).

    Args:
        fn: maps tiles [n, C, h, w] to [n, C_out, h*scale, w*scale].
        x: [B, C, H, W]; to shrink by 1/k, both sides must be multiples of k.
        tile: side of a tile, at least 8 in x and in the result; to shrink by 1/k, a multiple of k.
        overlap: least overlap of neighbours in x.
        scale: output size over input size, Fraction(1, 8) or 8.
        tile_batch: tiles per call, at least 1.
        on_tile: called as (tiles done, tiles in all) after each call of fn; may raise to stop.

    Returns:
        [B, C_out, H*scale, W*scale], of tiles of half the side where memory runs out, which a warning tells.

    Raises:
        ValueError: a size is not a multiple of what the scale asks for.
        OutOfMemory: even the smallest tile does not fit.
    """
    align, larger = Fraction(scale).denominator, int(max(scale, 1))
    grid: TileGrid | None = TileGrid(height=x.shape[-2], width=x.shape[-1], tile=tile, overlap=overlap, align=align)
    while True:
        try:
            return tiled(lambda tiles, _: fn(tiles), x, grid, tile_batch=tile_batch, scale=scale, on_tile=on_tile)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = str(error)
        free_unused()
        tried, grid = f"tiles of {larger * grid.tile} pixels in the autoencoder", grid.halved(LEAST_TILE // larger)
        if grid is None:
            raise OutOfMemory(f"expected memory for {tried}, got: {said}; use a device with more, or a smaller dtype")
        warnings.warn(f"out of memory with {tried}; going on with half the side", stacklevel=2)


def _axis_weights(side: int, size: int, starts: list[int], overlap: int) -> Tensor:
    weights = window(size, min(overlap, size - 1))
    total = torch.zeros(side)
    for start in starts:
        total[start : start + size] += weights
    return torch.stack([weights / total[start : start + size] for start in starts])


def _tile_weights(grid: TileGrid) -> list[tuple[Tensor, Tensor]]:
    rows, columns = blend_weights(grid)
    return [(row, column) for row in rows for column in columns]


def _check_inputs(x: Tensor, grid: TileGrid, extras: tuple[Tensor, ...]) -> None:
    for tensor in (x, *extras):
        _check_shape(
            tensor,
            (x.shape[0], grid.height, grid.width),
            "make the grid from x's size and extras of x's batch and size",
        )


def _check_shape(tensor: Tensor, expected: tuple[int, int, int], advice: str) -> None:
    if tensor.ndim != 4 or (tensor.shape[0], *tensor.shape[2:]) != expected:
        raise ValueError(f"expected (batch, height, width) {expected}, got shape {tuple(tensor.shape)}; {advice}")


def _scaled(length: int, scale: Fraction) -> int:
    scaled = length * scale
    if scaled.denominator != 1:
        raise ValueError(
            f"expected sizes, tile and align in multiples of {scale.denominator} at scale {scale}, got {length}; "
            "pad the picture or choose another tile"
        )
    return int(scaled)


def _cut(tensor: Tensor, boxes: Sequence[Box]) -> Tensor:
    return torch.cat([tensor[..., top : top + height, left : left + width] for top, left, height, width in boxes])
