"""Scores of every picture, kept in a CSV from which an evaluation goes on after being stopped.

A line holds method, picture, a fingerprint and one column per metric, and is written as soon as it is known. The
fingerprint is a hash of the contents of result, original and input and of the part that is scored; a column's heading
holds the exact id of its metric with package versions. A score is used again if both are the same, so a changed
picture or package, another protocol or another metric never meets an old score. The last line of a file that does not
end is dropped. A metric that fails on a picture leaves its cell empty and is tried again by the next call.
"""

import csv
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eam_core.images import load_image
from train.evaluation.metrics import LoadedMetric
from train.evaluation.pictures import Pictures
from train.run_folder import write_text

_KEYS = ("method", "image", "inputs")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # what spreadsheets begin formulas with, and what hides that
Row = dict[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What an evaluation found.

    Attributes:
        methods: names, the first one is the reader's own.
        images: names of the pictures.
        metrics: what was computed.
        missing: why the other metrics were not, by their title.
        values: [methods, images, metrics], nan where a metric gave no number.
    """

    methods: tuple[str, ...]
    images: tuple[str, ...]
    metrics: tuple[LoadedMetric, ...]
    missing: dict[str, str]
    values: np.ndarray

    def of(self, method: str, metric: str) -> np.ndarray:
        """Return a method's scores by a metric's name, one per picture."""
        index = [loaded.metric.name for loaded in self.metrics].index(metric)
        return self.values[self.methods.index(method), :, index]


@torch.no_grad()
def score_pictures(
    pictures: Pictures,
    metrics: Sequence[LoadedMetric],
    missing: dict[str, str],
    store: Path,
    *,
    square: int | None = None,
) -> Scores:
    """Score what the store does not hold yet, and leave the whole in it.

    Args:
        pictures: what to score.
        metrics: what to compute of each.
        missing: passed on.
        store: the CSV; scores of other metrics in it are kept for pictures that are the same.
        square: edge of the central square to score, in pixels; None for whole pictures. PSNR-LR is always of the whole.

    Returns:
        All scores, those that were in the store included.
    """
    columns = [metric.column for metric in metrics]
    old_columns, old = _read(store)
    header = [*_KEYS, *columns, *(name for name in old_columns if name not in columns)]
    digest = lru_cache(maxsize=None)(_digest)
    tasks = [(method, image) for image in pictures.images for method in pictures.sr]
    rows: dict[tuple[str, str], Row] = {}
    for method, image in tasks:
        inputs = _fingerprint([digest(path) if path else "" for path in pictures.files(method, image)], square)
        known = old.get((method, image), {})
        rows[method, image] = known if known.get("inputs") == inputs else _row(method, image, inputs)
    _write(store, header, old.values())
    load = lru_cache(maxsize=4)(lambda path: load_image(path).rgb)
    todo = [task for task in tasks if any(not rows[task].get(column) for column in columns)]
    with open(store, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
        for method, image in tqdm(todo, desc="scoring", unit="picture", disable=None):
            row = rows[method, image]
            _complete(row, [metric for metric in metrics if not row.get(metric.column)], pictures, load, square)
            writer.writerow(_guarded(row))
            file.flush()
    _write(store, header, rows.values())
    values = [[[_number(rows[m, i].get(c)) for c in columns] for i in pictures.images] for m in pictures.sr]
    return Scores(
        methods=tuple(pictures.sr),
        images=pictures.images,
        metrics=tuple(metrics),
        missing=missing,
        values=np.array(values, dtype=np.float64),
    )


def central_square(image: Tensor, edge: int | None) -> Tensor:
    """Cut the central square of an edge in pixels out of [B,3,H,W]; None returns the whole."""
    if edge is None:
        return image
    top, left = (image.shape[-2] - edge) // 2, (image.shape[-1] - edge) // 2
    return image[..., top : top + edge, left : left + edge]


def _complete(
    row: Row, metrics: Sequence[LoadedMetric], pictures: Pictures, load: Callable[[Path], Tensor], square: int | None
) -> None:
    method, image = row["method"], row["image"]
    sr = load(pictures.sr[method][image])
    for loaded in metrics:
        reference = loaded.metric.reference
        try:
            if reference == "lr":
                value = loaded.score(sr, load(pictures.lr[image]))
            else:
                hr = central_square(load(pictures.hr[image]), square) if reference else None
                value = loaded.score(central_square(sr, square), hr)
            row[loaded.column] = repr(float(value))
        # Packages refuse pictures in many ways, by size for one; the other scores are worth having all the same.
        except Exception as error:
            tqdm.write(f"{loaded.metric.title}: no score of {image} by {method} ({' '.join(str(error).split())})")


def _row(method: str, image: str, inputs: str) -> Row:
    return {"method": method, "image": image, "inputs": inputs}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fingerprint(digests: Sequence[str], square: int | None) -> str:
    return hashlib.sha256("|".join([*digests, str(square)]).encode()).hexdigest()[:16]


def _number(text: str | None) -> float:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else math.nan


def _read(store: Path) -> tuple[list[str], dict[tuple[str, str], Row]]:
    """Read what is whole; of several lines on one picture the last holds."""
    if not store.exists():
        return [], {}
    whole = store.read_bytes().decode(errors="replace").rpartition("\n")[0]
    header, *lines = csv.reader(io.StringIO(whole, newline="")) if whole else [[]]
    if tuple(header[: len(_KEYS)]) != _KEYS:
        return [], {}
    rows = {}
    for line in lines:
        if len(line) == len(header) and all(_is_number(text) for text in line[len(_KEYS) :]):
            method, image = (_unguarded(text) for text in line[:2])
            rows[method, image] = dict(zip(header, [method, image, *line[2:]]))
    return header[len(_KEYS) :], rows


def _guarded(row: Row) -> Row:
    """Keep spreadsheets from taking a name for a formula."""
    return {key: f"'{text}" if key in _KEYS[:2] and text.startswith(_FORMULA) else text for key, text in row.items()}


def _unguarded(text: str) -> str:
    return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULA) else text


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _write(store: Path, header: Sequence[str], rows) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_guarded, rows))
    write_text(store, text.getvalue())
