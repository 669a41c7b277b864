"""The tiles of one sampling run: smaller ones where memory runs out, and float32 for those that give no numbers."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from .errors import EAMError
from .model.autoencoder import DOWNSCALE
from .out_of_memory import OutOfMemory, free_unused, is_out_of_memory
from .tile_batch import TileBatch
from .tile_plan import meeting_tiles, overlapping_tiles
from .tiling import LEAST_TILE, Box, TileGrid, tiled

Predict = Callable[..., Tensor]
"""Called as in `tiling.tiled`: (tiles, *extra tiles, boxes)."""

Precisely = Callable[[], AbstractContextManager[None]]
"""Within it, the network computes in float32."""


class NumbersError(EAMError):
    """A prediction holds values that are not finite, whatever it is computed in."""


class TileRun:
    """Predict whole latents tile by tile, one call per model call of a sampler; what fails once is not tried again.

    Tiles overlap in the last steps, or in every one, see `tile_plan`.
    Where memory runs out even for one tile, the call begins anew with tiles of half the side, which stay for the run.
    Where a prediction holds NaN or infinite values, which costs one look per call, the call is made again with a look
    at each tile, and such tiles are computed in float32; every later call then looks at each tile.
    """

    def __init__(
        self,
        grid: TileGrid,
        tile_batch: TileBatch,
        precisely: Precisely | None,
        *,
        blend_every_step: bool = False,
        fixed: bool = False,
        may_cut: Callable[[], bool] = lambda: True,
    ):
        """Keep the settings.

        Args:
            grid: of the largest tiles in the latents.
            tile_batch: how many of them run at once.
            precisely: None where the network computes in float32 anyway, or cannot.
            blend_every_step: let them overlap in every step.
            fixed: keep to the grid's own tiles, in every step and for pictures of any size, as compiled models want.
            may_cut: tells whether tiles may be made smaller at all when memory runs out.
        """
        self.grid, self.tile_batch, self.precisely, self.tell = grid, tile_batch, precisely, tile_batch.tell
        self.blend_every_step, self.fixed, self.may_cut = blend_every_step, fixed, may_cut
        self.careful = self.told = False

    def __call__(
        self,
        predict: Predict,
        x: Tensor,
        where: Callable[[], str],
        *,
        step: int = 0,
        blend: bool = True,
        extras: tuple[Tensor, ...] = (),
        watch: Callable[[Predict, TileGrid], Predict] | None = None,
        on_tile: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Predict once.

        Args:
            predict: for tiles.
            x: noisy latents [B, C, H, W] of the grid's size.
            where: says which step this is, for messages.
            step: from 0; tiles that do not overlap lie elsewhere in every step.
            blend: whether tiles overlap, see `tile_plan.overlaps_in`.
            extras: cut along with x.
            watch: wraps `predict` for one round over all tiles, of which there may be several.
            on_tile: see `tiling.tiled`.

        Raises:
            OutOfMemory: even the smallest tile does not fit.
            NumbersError: a tile's prediction is not finite in float32 either, or x is not.
        """
        while True:
            grid = self.grid_of(step, blend)
            # A measure of smaller tiles must not let too many of the larger ones run at once later.
            self.tile_batch.headroom = (
                self.grid.tile_height * self.grid.tile_width / (grid.tile_height * grid.tile_width)
            )
            try:
                return self._finite(predict, x, grid, where, extras, watch, on_tile)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error)
            free_unused()  # outside of the handler, which keeps the failed call's tensors
            self._halve(said, grid)

    def grid_of(self, step: int, blend: bool) -> TileGrid:
        """Return the tiles of a step, by what is known now."""
        if self.fixed:
            return self.grid
        if blend or self.blend_every_step:
            return overlapping_tiles(self.grid)
        return meeting_tiles(self.grid, step)

    def _halve(self, said: str, failed: TileGrid) -> None:
        before = min(failed.tile, max(failed.height, failed.width)) * DOWNSCALE
        smaller = self.grid.halved(LEAST_TILE // DOWNSCALE) if self.may_cut() else None
        if smaller is None:
            raise OutOfMemory(
                f"expected memory for one tile of {before} pixels, got: {said}; close other programs, load the model "
                "in a smaller dtype, or use a device with more memory"
            )
        self.grid = smaller
        tile, overlap = smaller.tile * DOWNSCALE, smaller.overlap * DOWNSCALE
        self.tell(
            f"out of memory with one tile of {before} pixels; going on with tile {tile} and overlap {overlap}, which "
            "the next run may be given from the start"
        )

    def _finite(
        self,
        predict: Predict,
        x: Tensor,
        grid: TileGrid,
        where: Callable[[], str],
        extras: tuple[Tensor, ...],
        watch: Callable[[Predict, TileGrid], Predict] | None,
        on_tile: Callable[[int, int], None] | None,
    ) -> Tensor:
        def round_of(predict: Predict) -> Tensor:
            watched = watch(predict, grid) if watch else predict
            return tiled(watched, x, grid, extras=extras, tile_batch=self.tile_batch, on_tile=on_tile)

        if not self.careful:
            result = round_of(predict)
            if all_finite(result):
                return result
            if not all_finite(x):
                raise NumbersError(
                    f"expected finite latents at {where()}, got NaN or infinite values before the model ran; choose "
                    "another sampler or scheduler, and look at the picture that came in"
                )
            self.careful = True
        return round_of(self._checked(predict, where))

    def _checked(self, predict: Predict, where: Callable[[], str]) -> Predict:
        """Return `predict` with a look at every tile; one that is not finite is computed again, alone."""

        def checked(*args: object) -> Tensor:
            *stacks, boxes = args
            result = predict(*args)
            assert isinstance(boxes, list)
            if all_finite(result):
                return result
            parts = list(result.chunk(len(boxes)))
            for index, box in enumerate(boxes):
                if not all_finite(parts[index]):
                    one = (stack.chunk(len(boxes))[index] for stack in stacks if isinstance(stack, Tensor))
                    parts[index] = self._again(partial(predict, *one, [box]), box, where).to(result)
            return torch.cat(parts)

        return checked

    def _again(self, predict: Callable[[], Tensor], box: Box, where: Callable[[], str]) -> Tensor:
        top, left, height, width = (side * DOWNSCALE for side in box)
        tile = f"the tile of {width} x {height} pixels at {left}, {top} at {where()}"
        result = self._in_float32(predict)
        if result is not None and all_finite(result):
            if not self.told:
                self.tell(f"{tile} gave NaN or infinite values and was computed again in float32")
            self.told = True
            return result
        also = ", in float32 too" if result is not None else ""
        raise NumbersError(
            f"expected finite values for {tile}, got NaN or infinite ones{also}; weights may be damaged or not belong "
            "together: load them anew, without LoRA, in float32 or bfloat16"
        )

    def _in_float32(self, predict: Callable[[], Tensor]) -> Tensor | None:
        """Return what the network says in float32; None where it computes in it anyway, or cannot."""
        if self.precisely is None:
            return None
        try:
            with self.precisely():
                return predict()
        except RuntimeError as error:  # such as layers that cannot be cast
            if is_out_of_memory(error):
                raise
            return None


def all_finite(values: Tensor) -> bool:
    """Tell whether there is neither NaN nor infinity among values; waits for the device."""
    return bool(values.isfinite().all())
