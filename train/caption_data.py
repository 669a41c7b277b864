"""Caption many pictures: what is open, reading, asking several at once, writing whole files, listing what failed.

FOLDER/KEY.sa.txt, KEY.da.txt      a caption; where it is not empty, the picture is done
FOLDER/KEY.sa.json, KEY.da.json    the same with the model's focal areas, and which model gave it to which prompt

One small file per answer instead of one long list: each appears whole or not at all, processes on several machines
need no lock, and who deletes a caption has it made again.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eam_core.captioning.caption import Caption, Mode
from eam_core.captioning.captioner import CaptionConfig, SubjectCaptioner
from eam_core.captioning.messages import CaptionError, GenerateConfig, Generator
from eam_core.captioning.prompt import LONGEST_SIDE
from eam_core.errors import ImageError
from train.counted_model import CountedModel
from train.data.captions import caption_path
from train.data.config import DataError
from train.data.pictures import decode
from train.data.samples import Blob, Photo
from train.run_folder import write_text

MODES: tuple[Mode, ...] = ("sa", "da")
_LONGEST_NAME = 255  # bytes, of most file systems
_MOST_MISSES = 3  # batches in a row that the model answers nothing to, for each worker
_DECODERS = 4  # pictures decoded at once; a large one takes 200 MB until it is reduced
_BACKGROUND = 128  # mid grey: dark and light drawings both stand out from it


@dataclass(frozen=True)
class Job:
    """One picture and the kinds of captions that it lacks."""

    photo: Photo
    modes: tuple[Mode, ...]


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """Say how captions of a data set are asked for.

    Attributes:
        folder: where they go.
        lists: where it is written what failed; the same folder when None.
        modes: kinds wanted.
        extra: an instruction of the user's.
        generate: how answers are drawn.
        batch_size: pictures given to the model at once.
        workers: batches in work at once.
        one_at_a_time: the model takes one batch at a time; another worker then reads the next pictures meanwhile.
    """

    folder: Path
    lists: Path | None = None
    modes: tuple[Mode, ...] = MODES
    extra: str = ""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    batch_size: int = 1
    workers: int = 1
    one_at_a_time: bool = False


class _Stopped(Exception):
    """The run ends; answers that still grow are of no use."""


def open_jobs(photos: Iterable[Photo], config: AskConfig) -> tuple[list[Job], dict[str, str]]:
    """List the pictures that lack captions.

    Returns:
        What is wanted, and why by key for pictures under whose name the folder has the caption of another one.
    """
    jobs: list[Job] = []
    failed: dict[str, str] = {}
    for photo in photos:
        try:
            modes = tuple(mode for mode in config.modes if not _is_done(photo, mode, config))
        except DataError as error:
            failed[photo.key] = str(error)
            continue
        if modes:
            jobs.append(Job(photo, modes))
    return jobs, failed


def read_reduced(photo: Photo) -> Tensor:
    """Read a picture as [3,H,W] in [0,1], on grey where it is transparent, no larger than what a model is shown.

    Raises:
        ImageError: it is damaged, too small or too large.
        OSError: its file cannot be read.
    """
    pixels = decode(photo.picture.read(), photo.key, _BACKGROUND)
    height, width = pixels.shape[:2]
    shrink = LONGEST_SIDE / max(height, width)
    if shrink < 1:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255).contiguous()


class DataCaptioner:
    """Write captions of pictures; a picture that fails does not stop the others."""

    def __init__(self, model: Generator, config: AskConfig) -> None:
        """Keep the parts."""
        self._model = CountedModel(model)
        self.captioner, self.config = SubjectCaptioner(self._model), config
        self.failed: dict[str, str] = {}  # why, by key
        self._stop, self._error = threading.Event(), None
        self._decoding = threading.Semaphore(_DECODERS)
        self._gate = threading.Lock() if config.one_at_a_time else nullcontext()
        # A server that is away for a moment fails all workers at once, and a picture for all kinds of captions.
        self._most_misses = _MOST_MISSES * len(config.modes) * (1 if config.one_at_a_time else config.workers)

    def run(self, jobs: Sequence[Job], on_done: Callable[[int], object] = lambda count: None) -> None:
        """Caption pictures.

        Args:
            jobs: what is wanted.
            on_done: called with the number of pictures that have been dealt with since.

        Raises:
            CaptionError: the model as such cannot be used; what was captioned before stays.
            DiskError: a caption could not be written.
        """
        config, waiting = self.config, set()
        batches = [jobs[start : start + config.batch_size] for start in range(0, len(jobs), config.batch_size)]
        with ThreadPoolExecutor(config.workers) as pool:
            try:
                for batch in batches:
                    waiting.add(pool.submit(self._work, batch))
                    while len(waiting) >= 2 * config.workers:
                        waiting = self._collected(waiting, on_done)
                while waiting:
                    waiting = self._collected(waiting, on_done)
            except _Stopped:
                raise self._error or _Stopped from None  # what came first, not what followed from it
            finally:  # also of Ctrl-C
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _collected(
        self, waiting: set[Future[dict[str, str | None]]], on_done: Callable[[int], object]
    ) -> set[Future[dict[str, str | None]]]:
        done, left = wait(waiting, return_when=FIRST_COMPLETED)
        # What ends the run comes last: what else is ready then counts.
        for future in sorted(done, key=lambda future: future.exception() is not None):
            results = future.result()
            self.failed |= {key: why for key, why in results.items() if why}
            on_done(len(results))
        return left

    def _work(self, jobs: Sequence[Job]) -> dict[str, str | None]:
        """Caption a batch, unless the run has ended; an error that stops the run stops the other batches at once."""
        self._end_if_stopped()
        try:
            return self._caption(jobs)
        except _Stopped:
            raise
        except BaseException as error:
            self._error = self._error or error
            self._stop.set()
            raise

    def _caption(self, jobs: Sequence[Job]) -> dict[str, str | None]:
        """Caption a batch; returns why each picture failed, None for those that did not."""
        results: dict[str, str | None] = {job.photo.key: None for job in jobs}
        pictures: list[tuple[Job, Tensor]] = []
        for job in jobs:
            try:
                self._check_name(job)
                with self._decoding:
                    pictures.append((job, read_reduced(job.photo)))
            except (ImageError, DataError, OSError) as error:
                results[job.photo.key] = str(error)
            except UnicodeError as error:
                results[job.photo.key] = f"expected a name that can be that of a file, got {error}; rename the picture"
        for mode in self.config.modes:
            wanted = [(job, picture) for job, picture in pictures if mode in job.modes]
            if not wanted:
                continue
            for (job, _), answer in zip(wanted, self._answers([picture for _, picture in wanted], mode)):
                if why := self._kept(job.photo, mode, answer):
                    before = results[job.photo.key]
                    results[job.photo.key] = (f"{before}; " if before else "") + f"{mode}: {why}"
        return results

    def _kept(self, photo: Photo, mode: Mode, answer: Caption | CaptionError) -> str:
        """Write a caption; returns why there is none, else nothing."""
        if isinstance(answer, CaptionError):
            return str(answer)
        try:
            self._write(photo, mode, answer)
        except UnicodeError as error:
            return f"expected a caption of whole characters, got {error}; try another seed or another model"
        return ""

    def _answers(self, pictures: Sequence[Tensor], mode: Mode) -> list[Caption | CaptionError]:
        """Ask for captions; a picture without one gives its error.

        Raises:
            CaptionError: the model fails before it has answered anything, or too often in a row.
        """
        settings = CaptionConfig(mode=mode, extra=self.config.extra, generate=self.config.generate)
        before = self._model.answers
        answers: list[Caption | CaptionError]
        try:
            with self._gate:
                self._end_if_stopped()
                answers = self.captioner.caption_many(pictures, settings, on_token=self._end_if_stopped)
        except CaptionError as error:  # such as too little memory for this batch, or a request that is refused
            if not self._model.answers:
                raise
            answers = [error] * len(pictures)
        if self._model.answers == before and self._model.miss() >= self._most_misses:
            most, last = self._most_misses, answers[-1]
            raise CaptionError(f"expected some answer to {most} questions in a row, got none, the last time: {last}")
        return answers

    def _end_if_stopped(self, tokens: int = 0, most: int = 0) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _check_name(self, job: Job) -> None:
        path = caption_path(self.config.folder, job.photo.key, "sa.json")
        if path is None:
            raise DataError("expected a name inside the folder of captions, got one that leads out; rename the picture")
        if len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise DataError(f"expected a name of at most {_LONGEST_NAME} bytes, got a longer one; rename the picture")

    def _write(self, photo: Photo, mode: Mode, caption: Caption) -> None:
        answer = {
            **caption.as_json(),
            "model": self.captioner.model.identity,
            "prompt": self.captioner.prompt.version,
            "picture_bytes": _size(photo.picture),
        }
        text, note = (caption_path(self.config.folder, photo.key, f"{mode}.{kind}") for kind in ("txt", "json"))
        assert text and note
        # The text comes last: where it is, the picture counts as done.
        write_text(note, json.dumps(answer, ensure_ascii=False, indent=1) + "\n")
        write_text(text, caption.caption + "\n")


def check_keys(photos: Sequence[Photo]) -> None:
    """Refuse large shards that hold several pictures of one name, which are streamed without telling them apart.

    Raises:
        DataError: names the first.
    """
    keys = {photo.key for photo in photos}
    for photo in photos:
        name, tilde, number = photo.key.rpartition("~")
        if tilde and number.isdecimal() and name in keys:
            raise DataError(
                f"{name}: expected one picture of each name in shards that training streams, got {number} or more; "
                "make the shards anew with python -m train.prepare_data"
            )


def _is_done(photo: Photo, mode: Mode, config: AskConfig) -> bool:
    text, note = (caption_path(config.folder, photo.key, f"{mode}.{kind}") for kind in ("txt", "json"))
    try:
        if not text or not note or not text.stat().st_size:
            return False
    except (OSError, UnicodeError):
        return False
    try:
        size = json.loads(note.read_text(encoding="utf-8")).get("picture_bytes")
        other = size is not None and size != _size(photo.picture)
    except (OSError, ValueError, AttributeError):
        return True
    if other:
        raise DataError(
            f"{text}: expected the caption of {photo.picture.file}, got that of a picture of another size in bytes; "
            "name all sources in one run or use another --out, and delete the caption if the picture has changed"
        )
    return True


def _size(blob: Blob) -> int:
    return blob.length if blob.length >= 0 else Path(blob.file).stat().st_size
