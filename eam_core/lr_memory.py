"""What a control remembers of the tiles of one run: LR keys and values, computed once and kept within a budget."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .model.control import LRMemory
from .model.family import FamilyParams
from .tiling import Box

Remember = Callable[[Tensor], list[LRMemory]]


@dataclass(frozen=True, eq=False)
class _Group:
    """The memory of tiles that ran together, tile-major along the batch axis."""

    memory: list[LRMemory]
    boxes: tuple[Box, ...]


class LRMemories:
    """The memories of a run's tiles, each kept whatever tiles it runs together with; forget them with the run."""

    def __init__(self) -> None:
        """Start with none."""
        self.kept: dict[tuple[Hashable, Box], _Group] = {}
        self.num_bytes = 0
        self.closed = False
        self.keeps = True
        """Whether what is computed now is read again: not in a run's last step."""

    def state(
        self,
        lr: Tensor,
        boxes: Sequence[Box],
        remember: Remember,
        *,
        num_bytes: int,
        limit: Callable[[], int],
        key: Hashable = None,
        repeats: int = 1,
        pays: Callable[[], bool] = lambda: False,
    ) -> list[LRMemory] | None:
        """Return the memory of tiles; None where it cannot be kept and would not pay for one pass alone.

        Args:
            lr: LR latents of the tiles, tile-major along the batch axis [len(boxes)*B, C, h, w].
            boxes: of the tiles.
            remember: computes their memory, see `ControlFamily.remember`.
            num_bytes: size of this memory.
            limit: bytes that all memories may take together now; asked only before another is computed.
            key: tells apart what the boxes do not: whose LR latents, which control, which dtype.
            repeats: how many times over the pass has all these tiles along its batch axis.
            pays: tells whether to compute what cannot be kept: other halves of this pass read it, and it fits.
        """
        groups = [self.kept.get((key, box)) for box in boxes]
        if not any(group is None for group in groups):
            return _joined([(group, box) for group, box in zip(groups, boxes) if group is not None], boxes, repeats)
        fits = self.keeps and not self.closed and self.num_bytes + num_bytes <= limit()
        if not fits and not pays():
            return None
        group = _Group(remember(lr), tuple(boxes))
        if fits and all(other is None for other in groups):
            self.kept |= {(key, box): group for box in boxes}
            self.num_bytes += num_bytes
        return _joined([(group, box) for box in boxes], boxes, repeats)

    def forget(self) -> bool:
        """Drop all, keep no more, and say whether there was anything to drop."""
        had = bool(self.kept)
        self.kept, self.num_bytes, self.closed = {}, 0, True
        return had


def memory_bytes(params: FamilyParams, lr: Tensor) -> int:
    """Return the size of what a control remembers of LR latents [B, C, H, W], in their dtype."""
    height, width = lr.shape[-2:]
    num_tokens = len(lr) * -(-height // params.patch_size) * -(-width // params.patch_size)
    return 2 * params.depth * params.hidden_size * num_tokens * lr.element_size()


class _Joined(list[LRMemory]):
    """Memory of several groups, put together block by block as each is read, so that only one block is copied."""

    def __init__(self, groups: list[list[LRMemory]], repeats: int):
        super().__init__(groups[0])
        self.groups, self.repeats = groups, repeats

    def __getitem__(self, index: Any) -> Any:
        return LRMemory(*(self._part(list(parts)) for parts in zip(*(group[index] for group in self.groups))))

    def _part(self, parts: list[Tensor]) -> Tensor:
        part = torch.cat(parts) if len(parts) > 1 else parts[0]
        # No copy where it is one tile of one picture.
        return part.expand(self.repeats, *part.shape).flatten(0, 1) if self.repeats > 1 else part


def _joined(found: list[tuple[_Group, Box]], boxes: Sequence[Box], repeats: int) -> list[LRMemory]:
    """Return the memory of tiles in their order."""
    first = found[0][0]
    if first.boxes == tuple(boxes) and all(group is first for group, _ in found):
        return first.memory if repeats == 1 else _Joined([first.memory], repeats)
    return _Joined([_of_tile(group, box) for group, box in found], repeats)


def _of_tile(group: _Group, box: Box) -> list[LRMemory]:
    index, num = group.boxes.index(box), len(group.boxes)
    return [LRMemory(*(part.chunk(num)[index] for part in block)) for block in group.memory]
