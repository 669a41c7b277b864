"""From encoded samples to batches of crops, in a data worker; a picture that cannot be used is replaced by the next."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from eam_core.errors import EAMError, ImageError
from train.data.captions import caption_of
from train.data.config import Batch, DataConfig, DataError
from train.data.crops import training_crop
from train.data.pictures import decode
from train.data.samples import Photo, Sample
from train.data.schedule import Schedule
from train.data.shards import ShardStream
from train.seeding import generator, sample_seed

MAX_REPLACEMENTS = 100

_Fetch = Callable[[int], Sample]  # the sample so many places after the first of the micro-batch


class Source(Protocol):
    """Hand out samples for this rank's micro-batches first, first + num_workers, ... without end."""

    def fetchers(self, schedule: Schedule, first: int, num_workers: int) -> Iterator[_Fetch]: ...


@dataclass(kw_only=True)
class PhotoSource:
    """Read photos at random, each once per epoch: sample number n is place n of the epochs' permutations in a row."""

    photos: tuple[Photo, ...]
    seed: int
    _orders: dict[int, Tensor] = field(default_factory=dict)

    def fetchers(self, schedule: Schedule, first: int, num_workers: int) -> Iterator[_Fetch]:
        """Yield for each micro-batch a function that reads its j-th sample; j may go on beyond its end."""
        for index in count(first, num_workers):
            start = schedule.micro_batch(index)[0].start
            yield lambda j, start=start: self.photo(start + j).read()

    def photo(self, number: int) -> Photo:
        """Return the photo of a sample number."""
        epoch, place = divmod(number, len(self.photos))
        if epoch not in self._orders:
            self._orders.clear()
            dice = generator(sample_seed(self.seed, epoch), "epoch")
            self._orders[epoch] = torch.randperm(len(self.photos), generator=dice)
        return self.photos[int(self._orders[epoch][place])]


@dataclass(frozen=True, kw_only=True)
class StreamSource:
    """Read shards in order. Each of the readers, num_workers per rank, delivers every num_workers-th micro-batch."""

    shards: tuple[str, ...]
    seed: int
    held_out: int

    def fetchers(self, schedule: Schedule, first: int, num_workers: int) -> Iterator[_Fetch]:
        """Yield for each micro-batch a function that gives its j-th sample; j may go on beyond its end."""
        reader = first % num_workers
        stream = ShardStream(
            shards=self.shards,
            seed=self.seed,
            reader=schedule.rank * num_workers + reader,
            num_readers=schedule.world_size * num_workers,
            held_out=self.held_out,
        )
        samples = stream.samples(sum(len(schedule.micro_batch(i)[0]) for i in range(reader, first, num_workers)))
        ahead: deque[Sample] = deque()

        def fetch(j: int) -> Sample:
            while len(ahead) <= j:
                ahead.append(next(samples))
            return ahead[j]

        for index in count(first, num_workers):
            share = len(schedule.micro_batch(index)[0])
            yield fetch
            fetch(share - 1)
            for _ in range(share):
                ahead.popleft()


class MicroBatches(IterableDataset):
    """Make this rank's micro-batches from number `first` on; an error of the user's is an item, not raised."""

    def __init__(self, config: DataConfig, schedule: Schedule, source: Source, *, first: int) -> None:
        self.config, self.schedule, self.source, self.first = config, schedule, source, first

    def __iter__(self) -> Iterator[Batch | EAMError]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        first = self.first + worker
        try:
            for index, fetch in zip(count(first, num_workers), self.source.fetchers(self.schedule, first, num_workers)):
                numbers, size = self.schedule.micro_batch(index)
                yield self._batch(numbers, size, fetch)
        except EAMError as error:  # its text would drown in the traceback that DataLoader wraps around
            yield error

    def _batch(self, numbers: range, size: int, fetch: _Fetch) -> Batch:
        config, seeds = self.config, [sample_seed(self.schedule.seed, number) for number in numbers]
        turns = 4 if config.captions == "none" else 1  # captions speak of upright pictures
        crops, keys, captions = [], [], []
        for j, seed in enumerate(seeds):
            sample, pixels = self._usable(fetch, j)
            crops.append(training_crop(pixels, size, seed, tries=config.crop_tries, turns=turns))
            keys.append(sample.key)
            captions.append(caption_of(sample, config.captions, config.caption_dir))
        return Batch(torch.stack(crops), torch.tensor(seeds, dtype=torch.int64), keys, captions)

    def _usable(self, fetch: _Fetch, first: int) -> tuple[Sample, np.ndarray]:
        smallest = max(self.config.crop_sizes)
        for j in range(first, first + MAX_REPLACEMENTS):
            try:
                sample = fetch(j)
                pixels = decode(sample.picture, sample.key)
            except (ImageError, OSError) as error:
                warnings.warn(f"a picture is replaced by another one: {error}", stacklevel=2)
                continue
            if min(pixels.shape[:2]) >= smallest:
                return sample, pixels
            warnings.warn(f"pictures smaller than the largest crop of {smallest} pixels are replaced", stacklevel=2)
        raise DataError(
            f"expected readable pictures of at least {smallest} x {smallest} pixels, met {MAX_REPLACEMENTS} others "
            "in a row; lower --crop-sizes or check the files."
        )
