"""Batches of training crops, the same for any number of processes and workers, and from any step on."""

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from eam_core.errors import EAMError, ImageError
from train.data.batches import MicroBatches, PhotoSource, Source, StreamSource
from train.data.captions import caption_of, check_caption_dir, check_captions
from train.data.config import Batch, DataConfig, DataError
from train.data.crops import fixed_crop
from train.data.pictures import decode, measure
from train.data.samples import Photo, is_held_out, key_hash, photo_key
from train.data.schedule import Schedule
from train.data.shards import check_shards
from train.data.sources import index_tar, resolve
from train.seeding import sample_seed

_HEADER_THREADS = 8
_NAMES_SHOWN = 3


class TrainingData:
    """Find the pictures of a run and hand out its batches."""

    num_photos: int | None  # that are trained on; None when streamed

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Resolve the sources, leave out what cannot be used, and set validation pictures aside.

        Args:
            config: sources and crops.
            seed: of the run.
            batch_size: samples per optimiser step over all processes, at the smallest crop size.
            accumulation: micro-batches per optimiser step.
            rank, world_size: which training process of how many this is.

        Raises:
            ValueError: batch_size cannot be shared out evenly.
            DataError: a source is missing, empty or unusable, or captions are missing.
        """
        self._config = config
        self._schedule = Schedule(
            seed=seed,
            batch_size=batch_size,
            crop_sizes=config.crop_sizes,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
        )
        check_caption_dir(config.caption_dir)
        found = resolve(config.data)
        self._shards, self._held_out = found.shards, ()
        self._source: Source
        if found.shards:
            check_shards(len(found.shards), world_size, config.num_workers)
            self._source = StreamSource(shards=found.shards, seed=seed, held_out=config.held_out)
            self.num_photos = None
        else:
            photos = _usable(found.photos, max(config.crop_sizes))
            check_captions(photos, config.captions, config.caption_dir)
            self._held_out = tuple(photo for photo in photos if is_held_out(photo.key, config.held_out))
            training = tuple(photo for photo in photos if not is_held_out(photo.key, config.held_out))
            if not training:
                raise DataError(
                    f"expected pictures to train on, got {len(photos)} and all are held out; set --held-out 0 "
                    "or add more."
                )
            self._source = PhotoSource(photos=training, seed=seed)
            self.num_photos = len(training)

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's micro-batches, `accumulation` per step, endlessly.

        Args:
            start_step: optimiser step to begin with; what follows equals what an uninterrupted run would get there,
                for shards if the numbers of processes and workers are the same.

        Raises:
            DataError: a worker process died, or a source turned out damaged.
        """
        first = start_step * self._schedule.accumulation
        workers = self._config.num_workers
        loader = DataLoader(
            MicroBatches(self._config, self._schedule, self._source, first=first),
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_stopping_to_trainer,
            prefetch_factor=2 if workers else None,
            generator=torch.Generator(),  # so that it draws nothing from the global one
        )
        iterator = _start(loader)
        while True:
            try:
                item = next(iterator)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    "a data worker died (out of memory or shared memory?): lower --num-workers; 0 loads pictures in "
                    "the training process itself."
                ) from error
            if isinstance(item, EAMError):
                del iterator  # ends the workers now; left to the garbage collector, that takes seconds
                raise item
            yield item

    def held_out_batch(self, count: int, size: int) -> Batch:
        """Return the middles of held-out pictures: the same in every process, whatever the run's seed.

        Args:
            count: how many are wanted; fewer come if fewer are held out or large enough, possibly none.
            size: edge of the crops in pixels.

        Raises:
            DataError: a caption is missing or a shard is damaged.
        """
        crops, seeds, keys, captions, seen = [], [], [], [], set()
        for photo in self._held_out_photos():
            if len(crops) == count:
                break
            if photo_key(photo.key) in seen:
                continue
            try:
                sample = photo.read()
                pixels = decode(sample.picture, photo.key)
            except (ImageError, OSError) as error:
                warnings.warn(f"a held-out picture is left out: {error}", stacklevel=2)
                continue
            if min(pixels.shape[:2]) < size:
                continue
            seen.add(photo_key(photo.key))
            crops.append(fixed_crop(pixels, size))
            seeds.append(sample_seed(0, key_hash(photo.key)))
            keys.append(photo.key)
            captions.append(caption_of(sample, self._config.captions, self._config.caption_dir))
        hr = torch.stack(crops) if crops else torch.empty(0, 3, size, size, dtype=torch.uint8)
        return Batch(hr, torch.tensor(seeds, dtype=torch.int64), keys, captions)

    def _held_out_photos(self) -> Iterator[Photo]:
        yield from sorted(self._held_out, key=lambda photo: (key_hash(photo.key), photo.key))
        for shard in self._shards:
            yield from (photo for photo in index_tar(shard) if is_held_out(photo.key, self._config.held_out))


def _usable(photos: tuple[Photo, ...], crop: int) -> list[Photo]:
    """Leave out what is no picture or smaller than the crop, with one warning."""
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        faults = list(tqdm(pool.map(lambda p: _fault(p, crop), photos), "reading sizes", len(photos), False, delay=2))
    left_out = [f"{photo.key} ({fault})" for photo, fault in zip(photos, faults) if fault]
    shown = ", ".join(left_out[:_NAMES_SHOWN]) + (", ..." if len(left_out) > _NAMES_SHOWN else "")
    if len(left_out) == len(photos):
        raise DataError(
            f"expected pictures of at least {crop} x {crop} pixels, the largest crop, got none among {len(photos)}: "
            f"{shown}; lower --crop-sizes or use larger pictures."
        )
    if left_out:
        warnings.warn(
            f"{len(left_out)} of {len(photos)} pictures are left out, unreadable or smaller than the largest crop of "
            f"{crop} pixels: {shown}",
            stacklevel=3,
        )
    return [photo for photo, fault in zip(photos, faults) if not fault]


def _fault(photo: Photo, crop: int) -> str | None:
    try:
        height, width = measure(photo.picture, photo.key)
    except ImageError:
        return "unreadable"
    return f"{width} x {height}" if min(height, width) < crop else None


def _start(loader: DataLoader) -> Iterator[Batch | EAMError]:
    """Start the workers; the death of one is then noticed where its batch is awaited, not anywhere in the trainer."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return iterator


def _leave_stopping_to_trainer(worker: int) -> None:
    # A SIGTERM or Ctrl+C to the trainer's process group must let it finish its step and save; workers end with it.
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def _unchanged(item: Any) -> Any:
    return item
