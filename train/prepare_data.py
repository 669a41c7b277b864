"""Cut the detailed parts of pictures into WebDataset shards.

    python -m train.prepare_data SOURCES... --out DIR

Sources are those of training: folders, .tar files, patterns of them, or NAME=PATH with a known layout. Pictures go to
shards in the order of a hash of their keys, so that every shard holds a mixture of all sources. A run that was killed
goes on when started again; shards appear under their names only when whole.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import os
import secrets
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from eam_core.errors import DiskError, ImageError
from train.data.config import CROP_MULTIPLE, DataError
from train.data.grid import detailed_crops
from train.data.pictures import decode
from train.data.samples import Photo, crop_key, key_hash
from train.data.sources import all_photos
from train.options import run_script

SETTINGS = "prepare.json"
SKIPPED = "skipped.txt"
# Kept inside each shard, under a name that readers of shards leave out, so that shard and list are finished at once.
_SKIPPED_MEMBER = "__skipped__"
MAX_CROPS = 100  # two digits number the crops of a picture


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Say how shards are made.

    Attributes:
        sources: as in DataConfig.data.
        shard_size: pictures per shard; a shard holds the crops of all of them.
        crop_size: edge of a crop in pixels.
        crops_per_image: at most so many crops of one picture, which do not overlap.
        min_detail: mean |Laplacian| in grey levels that a crop must reach.
        quality: of the JPEG files, 1 to 100.
    """

    sources: tuple[str, ...]
    shard_size: int = 100
    crop_size: int = 1024
    crops_per_image: int = 4
    min_detail: float = 3.0
    quality: int = 95

    def __post_init__(self) -> None:
        if self.crop_size < CROP_MULTIPLE or self.crop_size % CROP_MULTIPLE:
            raise ValueError(
                f"expected a crop size that is a multiple of {CROP_MULTIPLE}, got {self.crop_size}; try 1024"
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"expected a quality from 1 to 100, got {self.quality}; 95 loses nothing that is seen")
        if not 1 <= self.crops_per_image <= MAX_CROPS:
            raise ValueError(f"expected 1 to {MAX_CROPS} crops per image, got {self.crops_per_image}; try 4")
        if self.shard_size < 1 or not self.min_detail >= 0:
            raise ValueError(
                f"expected a shard size of at least 1 and a detail of at least 0, got {self.shard_size} and "
                f"{self.min_detail}; leave them out for the defaults"
            )


def prepare(config: PrepareConfig, out: Path, *, num_workers: int) -> list[Path]:
    """Make the shards that are not there yet.

    Args:
        config: sources and crops.
        out: folder for the shards, prepare.json and skipped.txt.
        num_workers: processes that make shards.

    Returns:
        Paths of all shards.

    Raises:
        DataError: a source is missing, or the folder was begun with other settings or pictures.
        DiskError: a shard could not be written.
    """
    photos = sorted(all_photos(config.sources), key=lambda photo: (key_hash(photo.key), photo.key))
    _claim(out, config, photos)
    parts = [photos[i : i + config.shard_size] for i in range(0, len(photos), config.shard_size)]
    shards = [out / f"{index:05d}.tar" for index in range(len(parts))]
    for stale in out.glob(".*.part"):
        stale.unlink()
    missing = [(shard, part) for shard, part in zip(shards, parts) if not shard.exists()]
    done = len(photos) - sum(len(part) for _, part in missing)
    with (
        ProcessPoolExecutor(num_workers, initializer=_end_with, initargs=(os.getpid(),)) as pool,
        tqdm(total=len(photos), initial=done, desc="preparing shards", unit="picture") as progress,
    ):
        futures = {pool.submit(make_shard, config, shard, part): len(part) for shard, part in missing}
        try:
            for future in as_completed(futures):
                future.result()
                progress.update(futures[future])
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process died (out of memory?): lower --num-workers and start again; finished shards stay."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    with _whole(out / SKIPPED) as file:
        file.write("".join(_skipped(shard) for shard in shards).encode())
    return shards


def make_shard(config: PrepareConfig, shard: Path, photos: Iterable[Photo]) -> None:
    """Cut the photos' most detailed crops and write them, with their captions, as one tar.

    The tar's bytes follow from photos and config alone.

    Raises:
        DiskError: it could not be written; nothing is left under its name.
    """
    skipped = []
    with _whole(shard) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for photo in photos:
            try:
                sample = photo.read()
                crops = detailed_crops(
                    decode(sample.picture, photo.key),
                    photo.key,
                    size=config.crop_size,
                    most=config.crops_per_image,
                    min_detail=config.min_detail,
                )
            except (ImageError, OSError) as error:
                skipped.append(f"{error}\n")
                continue
            for index, crop in enumerate(crops):
                key = crop_key(photo.key, index)
                _add(archive, f"{key}.jpg", _jpeg(crop, config.quality))
                for kind, data in sample.sidecars.items():
                    _add(archive, f"{key}.{kind}", data)
        _add(archive, _SKIPPED_MEMBER, "".join(skipped).encode())


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="JPEG", quality=quality, subsampling=0)
    return data.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _claim(out: Path, config: PrepareConfig, photos: list[Photo]) -> None:
    """Write the settings into a new folder, or check that the folder was begun with the same ones."""
    keys = "\n".join(photo.key for photo in photos)
    pictures = {"pictures": len(photos), "pictures_hash": hashlib.blake2b(keys.encode(), digest_size=8).hexdigest()}
    settings = json.loads(json.dumps(dataclasses.asdict(config) | pictures))
    path = out / SETTINGS
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        changed = [
            f"{name} {before.get(name)} and now {value}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed:
            raise DataError(
                f"{out}: expected the settings it was begun with, got {'; '.join(changed)}; use these or "
                "another folder."
            )
        return
    if any(out.glob("*.tar")):
        raise DataError(
            f"{out}: expected an empty folder or one begun by this script, got other shards; use another one."
        )
    with _whole(path) as file:
        file.write((json.dumps(settings, indent=1) + "\n").encode())


def _skipped(shard: Path) -> str:
    with tarfile.open(shard) as archive:
        file = archive.extractfile(_SKIPPED_MEMBER)
        return file.read().decode() if file else ""


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when it is whole and on disk."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(
            f"{path}: expected to write it, could not ({error.strerror or error}); free some space or choose another "
            "folder, finished shards stay."
        ) from error


def _end_with(parent: int) -> None:
    """Let this worker end with the process that started it, even one that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the command line."""
    defaults = {field.name: field.default for field in dataclasses.fields(PrepareConfig)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="folders, .tar files, patterns or NAME=PATH")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    for name, text in (
        ("shard_size", "pictures per shard"),
        ("crop_size", "edge of the crops in pixels"),
        ("crops_per_image", "at most so many of one picture, without overlap"),
        ("min_detail", "mean |Laplacian| in grey levels that a crop must reach"),
        ("quality", "of the JPEG files"),
    ):
        default = defaults[name]
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"{text} (default {default})")
    workers = max((os.cpu_count() or 2) - 1, 1)
    parser.add_argument("--num-workers", type=int, default=workers, help=f"processes (default here {workers})")
    args = vars(parser.parse_args())
    out, num_workers, sources = args.pop("out"), args.pop("num_workers"), tuple(args.pop("sources"))
    try:
        config = PrepareConfig(sources=sources, **args)
        if num_workers < 1:
            raise ValueError(f"expected --num-workers of at least 1, got {num_workers}; leave it out for one per core")
    except ValueError as error:
        parser.error(str(error))
    shards = prepare(config, out, num_workers=num_workers)
    print(f"{len(shards)} shards in {out}; pictures without crops are listed in {out / SKIPPED}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
