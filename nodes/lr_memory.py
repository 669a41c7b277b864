"""LR keys and values that steps share in the graph: tiles of LR latents that say whose they are, and a budget.

The guider cuts LR latents into tiles that carry their origin; core batches them, and the hook finds it. Whatever else
changes the tensor on the way leaves the origin behind, and the control then starts from the latents themselves.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.model_management
from comfy.conds import CONDNoiseShape
from torch import Tensor

from ..eam_core.lr_memory import LRMemories, memory_bytes
from ..eam_core.model.control import LRMemory
from ..eam_core.model.family import ControlFamily
from ..eam_core.model.mmdit import Host
from ..eam_core.tiling import Box

MOST_BYTES = 4 * 2**30  # so that a large picture does not fill a large GPU, where others may want to run too
_NEED = 1.5  # core's own margin on what a pass takes
_ORIGIN = "eam_origin"


@dataclass(frozen=True, eq=False)
class Origin:
    """Whose LR latents a batch holds.

    Attributes:
        memories: of the run.
        source: the whole LR latents; held, so that their id is theirs alone.
        boxes: of the tiles, tile-major along the batch axis.
        num: of samples of all these tiles; a pass may have them several times over.
    """

    memories: LRMemories
    source: Tensor
    boxes: tuple[Box, ...]
    num: int


class TileLR(CONDNoiseShape):
    """Tiles of LR latents as core batches them."""

    def __init__(self, cond: Tensor, origin: Origin):
        """Keep tiles [B, C, h, w] and their origin."""
        super().__init__(cond)
        self.origin = origin

    def _copy_with(self, cond: Tensor) -> CONDNoiseShape:
        return CONDNoiseShape(cond)

    def process_cond(self, batch_size: int, area: Any, **kwargs: Any) -> CONDNoiseShape:
        """Crop and repeat as core does; what needs neither stays as it is."""
        if area is None and batch_size == len(self.cond):
            return self
        return super().process_cond(batch_size, area, **kwargs)

    def same(self, other: Any) -> bool:
        """Tell whether another condition holds the same tiles of the same latents."""
        if not isinstance(other, TileLR):
            return False
        return self.origin.source is other.origin.source and self.origin.boxes == other.origin.boxes

    def concat(self, others: list[Any]) -> Tensor:
        """Batch with other conditioning's."""
        joined = super().concat(others)
        if all(self.same(other) for other in others):
            setattr(joined, _ORIGIN, self.origin)
        return joined


def cast_with_origin(given: Tensor, like: Tensor, dtype: Any) -> Tensor:
    """Return core's batch of a condition on the device of `like`, with its origin where it has one."""
    cast = comfy.model_management.cast_to_device(given, like.device, dtype)
    if hasattr(given, _ORIGIN):
        setattr(cast, _ORIGIN, getattr(given, _ORIGIN))
    return cast


def remembered(
    control: ControlFamily, given: Tensor, host: Host, key: Hashable, spare: Callable[[], int]
) -> list[LRMemory] | None:
    """Return what a control remembers of a pass's LR latents; None where it cannot, or where memory does not allow.

    Args:
        control: of any family.
        given: LR latents [B, C, h, w] in the dtype that the network computes in.
        host: the base at the start of this pass.
        key: of the control.
        spare: measures how many bytes this pass leaves free.
    """
    origin: Origin | None = getattr(given, _ORIGIN, None)
    if origin is None or not control.can_remember or len(given) % origin.num:
        return None
    lr, repeats, memories = given[: origin.num], len(given) // origin.num, origin.memories
    num_bytes = memory_bytes(control.params, lr)
    return memories.state(
        lr,
        origin.boxes,
        lambda tiles: control.remember(tiles, host),
        num_bytes=num_bytes,
        # As much again stays free as is held.
        limit=lambda: min(MOST_BYTES, (memories.num_bytes + spare()) // 2),
        key=(key, id(origin.source), given.dtype),
        repeats=repeats,
        pays=lambda: repeats > 1 and num_bytes <= min(MOST_BYTES, spare() // 2),
    )


def spare_memory(base: comfy.model_base.BaseModel, x: Tensor) -> int:
    """Return how many bytes of the device a pass over x [B, C, H, W] leaves free, by core's own estimate."""
    management = comfy.model_management
    need = _NEED * base.memory_required([2 * len(x), *x.shape[1:]])  # every family adds a token per noisy one
    return int(management.get_free_memory(x.device) - max(need, management.minimum_inference_memory()))
