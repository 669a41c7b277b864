"""Which sample numbers make up which micro-batch, and at which crop size: a function of the seed alone."""

from dataclasses import dataclass

import torch

from train.seeding import generator, sample_seed


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Share out sample numbers. Sample number = step * batch_size + position in the step.

    Attributes:
        seed: of the run.
        batch_size: samples per optimiser step over all processes, at the smallest crop size.
        crop_sizes: pixels; one is drawn per step.
        accumulation: micro-batches per optimiser step.
        rank, world_size: which process of how many this is.
    """

    seed: int
    batch_size: int
    crop_sizes: tuple[int, ...]
    accumulation: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        shares = self.accumulation * self.world_size
        if self.batch_size < 1 or self._undivided(self.batch_size):
            larger = range(max(self.batch_size, 0) + 1, self.batch_size + 4096)
            fitting = next((n for n in larger if not self._undivided(n)), None)
            raise ValueError(
                f"expected a batch_size that divides by accumulation x processes = {shares} at every crop size of "
                f"{list(self.crop_sizes)}, got {self.batch_size}; "
                f"{f'{fitting} is the next that does' if fitting else 'use other crop sizes'}"
            )

    def size(self, step: int) -> int:
        """Return the edge in pixels of all crops of a step."""
        sizes = self.crop_sizes
        if len(sizes) == 1:
            return sizes[0]
        dice = generator(sample_seed(self.seed, step), "crop size")
        return sizes[int(torch.randint(len(sizes), (), generator=dice))]

    def micro_batch(self, index: int) -> tuple[range, int]:
        """Return the sample numbers and the crop size of this rank's micro-batch number `index`."""
        step, part = divmod(index, self.accumulation)
        size = self.size(step)
        share = self._samples(self.batch_size, size) // (self.accumulation * self.world_size)
        first = step * self.batch_size + (part * self.world_size + self.rank) * share
        return range(first, first + share), size

    def _samples(self, batch_size: int, size: int) -> int:
        return batch_size * min(self.crop_sizes) ** 2 // size**2

    def _undivided(self, batch_size: int) -> bool:
        samples = [self._samples(batch_size, size) for size in self.crop_sizes]
        return any(count == 0 or count % (self.accumulation * self.world_size) for count in samples)
