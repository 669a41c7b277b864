"""Tar shards read from start to end with webdataset, shuffled, and resumable without reading what is done."""

import random
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, dropwhile, islice

import torch

from train.data.config import DataError
from train.data.samples import PICTURE_KINDS, SIDECAR_KINDS, Sample, is_held_out, split_name
from train.data.sources import damaged_tar, index_tar
from train.seeding import generator, sample_seed

SHUFFLE = 512  # encoded pictures kept in memory per worker

_Token = tuple[str, str]  # shard, key


@dataclass(kw_only=True)
class ShardStream:
    """Read one reader's share of the shards, endlessly; the order follows from the seed and the shards' names alone.

    In each epoch every reader gets other shards: the epoch's permutation, every num_readers-th of it.

    Attributes:
        shards: paths of all shards.
        seed: of the run.
        reader, num_readers: which of all readers, over ranks and workers, this is.
        held_out: as in DataConfig; these pictures are left out.
    """

    shards: tuple[str, ...]
    seed: int
    reader: int
    num_readers: int
    held_out: int
    _keys: dict[str, list[str]] = field(default_factory=dict)

    def samples(self, skip: int) -> Iterator[Sample]:
        """Yield samples from number `skip` on; those before are counted by the tars' headers, not read.

        Raises:
            DataError: a shard is damaged, or no shard holds a picture.
        """
        for epoch in count():
            dice = generator(sample_seed(self.seed, epoch), "shards")
            order = torch.randperm(len(self.shards), generator=dice).tolist()
            mine = [self.shards[i] for i in order[self.reader :: self.num_readers]]
            tokens = self._shuffled(mine, epoch)
            done = list(islice(tokens, skip))
            skip -= len(done)
            read = 0
            for sample in self._read(mine, tokens, set(done)):
                read += 1
                yield sample
            if not read and not done:
                raise DataError(f"{mine[0]}: expected pictures to train on, found none in it; remove the empty shards.")

    def _shuffled(self, shards: list[str], epoch: int) -> Iterator[_Token]:
        from webdataset.filters import shuffle

        tokens = ((shard, key) for shard in shards for key in self._keys_of(shard))
        seed = sample_seed(sample_seed(self.seed, epoch), self.reader)
        return shuffle(SHUFFLE, initial=SHUFFLE, rng=random.Random(seed))(tokens)

    def _keys_of(self, shard: str) -> list[str]:
        if shard not in self._keys:
            keys = [photo.key for photo in index_tar(shard)]
            self._keys[shard] = [key for key in keys if not is_held_out(key, self.held_out)]
        return self._keys[shard]

    def _read(self, shards: list[str], tokens: Iterator[_Token], done: set[_Token]) -> Iterator[Sample]:
        """Yield the samples of `tokens` while going through the shards once."""
        left = dropwhile(lambda shard: all((shard, key) in done for key in self._keys_of(shard)), shards)
        stored = _stored(left, self.held_out)
        waiting: dict[_Token, Sample] = {}
        for token in tokens:
            while token not in waiting:
                shard, sample = next(stored, (token[0], None))
                if sample is None:
                    raise DataError(f"{shard}: expected {token[1]} in it, found it changed; leave shards as they are.")
                if (shard, sample.key) not in done:
                    waiting[shard, sample.key] = sample
            yield waiting.pop(token)


def check_shards(shards: int, world_size: int, num_workers: int) -> None:
    """Refuse to stream fewer shards than there are readers, and to stream without webdataset.

    Raises:
        DataError: says how many shards are needed.
    """
    readers = world_size * max(num_workers, 1)
    if shards < readers:
        raise DataError(
            f"expected at least {readers} shards for {world_size} processes with {max(num_workers, 1)} data workers "
            f"each, got {shards}; lower --num-workers or make smaller shards with python -m train.prepare_data."
        )
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise DataError(
            "expected the package webdataset for shards of 1 GiB and more, found none; pip install webdataset."
        ) from error


def _stored(shards: Iterable[str], held_out: int) -> Iterator[tuple[str, Sample]]:
    """Yield (shard, sample) in stored order; what is held out is passed over unread."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def wanted(name: str) -> bool:
        parts = split_name(_plain(name))
        return parts is not None and not is_held_out(parts[0], held_out)

    for shard in shards:
        try:
            with open(shard, "rb") as stream:
                opened = [{"url": shard, "stream": stream}]
                files = tar_file_expander(opened, select_files=wanted, rename_files=_plain)
                for group in group_by_keys(files, keys=lambda name: split_name(name) or (None, None)):
                    kind = next((kind for kind in PICTURE_KINDS if kind in group), None)
                    if kind:
                        sidecars = {kind: group[kind] for kind in SIDECAR_KINDS if kind in group}
                        yield shard, Sample(group["__key__"], group[kind], sidecars)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise damaged_tar(shard, error) from error


def _plain(name: str) -> str:
    return name.removeprefix("./")
