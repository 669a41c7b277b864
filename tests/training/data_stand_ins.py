"""What the tests of training data share: pictures of noise in folders and shards, and how batches are read."""

import io
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from train.data import Batch, DataConfig, TrainingData


def picture(number: int, width: int = 48, height: int = 40) -> Image.Image:
    dice = np.random.default_rng(number)
    return Image.fromarray(dice.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_photos(folder: Path) -> Path:
    """Write 13 pictures of noise."""
    for number in range(13):
        (folder / f"{number:02d}.jpg").write_bytes(encoded(picture(number)))
    return folder


def write_shards(folder: Path) -> Path:
    """Write five shards of 7 pictures each, with captions, one of them of a picture too small to use."""
    for shard in range(5):
        files = {}
        for number in range(7):
            size = (20, 20) if (shard, number) == (1, 3) else (48, 40)
            key = f"{shard}/{number}"
            files |= {f"{key}.jpg": encoded(picture(10 * shard + number, *size)), f"{key}.sa.txt": key.encode()}
        write_tar(folder / f"{shard:03d}.tar", files | {"__notes__": b"of no interest"})
    return folder


def open_data(*data: Path | str, batch_size: int = 4, accumulation: int = 1, rank=0, world_size=1, **config):
    settings = {"crop_sizes": (32,), "held_out": 0, "num_workers": 0} | config
    return TrainingData(
        DataConfig(data=tuple(map(str, data)), **settings),
        seed=5,
        batch_size=batch_size,
        accumulation=accumulation,
        rank=rank,
        world_size=world_size,
    )


def rows(batches: list[Batch]) -> list[tuple[int, str, bytes]]:
    return [
        (int(seed), key, crop.numpy().tobytes())
        for batch in batches
        for seed, key, crop in zip(batch.seeds, batch.keys, batch.hr)
    ]


def take(data: TrainingData, count: int, start_step: int = 0) -> list[Batch]:
    stream = data.batches(start_step)
    found = list(islice(stream, count))
    stream.close()  # type: ignore[attr-defined]
    return found
