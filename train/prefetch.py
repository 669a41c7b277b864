"""Batches made by a worker process while the model trains on the last one."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

BatchT = TypeVar("BatchT")


class _Stream(IterableDataset, Generic[BatchT]):
    def __init__(self, draw: Callable[[torch.Generator], BatchT], seed: int):
        self.draw, self.seed = draw, seed

    def __iter__(self) -> Iterator[BatchT]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield self.draw(generator)


def prefetch(draw: Callable[[torch.Generator], BatchT], seed: int) -> Iterator[BatchT]:
    """Yield `draw(generator)` without end, two batches ahead; the order depends on the seed alone."""
    return iter(DataLoader(_Stream(draw, seed), batch_size=None, num_workers=1, prefetch_factor=2))
