"""What each test set consists of: where its pictures come from, how many there are and under which licence."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eam_core.errors import EAMError
from eam_core.images import INPUT_SUFFIXES, list_images, load_image, resize
from train.prepare_photos import CROP, Source, detailed_crops, fetch, photos

CROPS_PER_PHOTO = 10
SCALES, MIN_DETAIL = (1, 2), 6.0  # of the crops of `photos`, see train.prepare_photos.detailed_crops
DIV2K_SHORT_EDGE = 1024

# Photographs that the training packages do not hold. scikit-image's other photographs are smaller than a crop.
_SKIMAGE = {
    "astronaut": "public domain, NASA (documentation of skimage.data.astronaut)",
    "camera": "CC0, Lav Varshney (documentation of skimage.data.camera)",
}
PHOTO_SOURCES = (
    Source(
        client="deb",
        package="lomiri-wallpapers-16.04",
        patterns=("usr/share/backgrounds/*.jpg",),
        licence="see the package's copyright file",
    ),
    *(
        Source(client="pypi", package="scikit-image==0.26.0", patterns=(f"skimage/data/{name}.png",), licence=licence)
        for name, licence in _SKIMAGE.items()
    ),
)


class SetError(EAMError):
    """A test set's source or folder is missing or is not what it must be."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """Describe one picture of a test set; its pixels are read when they are needed.

    Attributes:
        stem: name of its files without suffix.
        origin: what test_set.json says of where it comes from.
        licence: as far as known; empty where the set's holds.
        hr: gives the original [1,3,H,W] in [0,1]; None where the set has none.
        lr: gives the input where the set brings one; None where it is made from `hr`.
    """

    stem: str
    origin: dict[str, Any]
    licence: str = ""
    hr: Callable[[], Tensor] | None = None
    lr: Callable[[], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class SetSpec:
    """Describe a test set.

    Attributes:
        items: lists its pictures; gets the folder (of the user's, or of fetched packages) and the scale.
        count: number of pictures that it must have; None for any number.
        licence: of the pictures that do not name their own.
        presets: degradations that make its inputs; empty where inputs come with the set.
        source: what the user's folder must hold and where it is published; empty where none is needed.
    """

    items: Callable[[Path, int], Iterator[Item]]
    count: int | None = None
    licence: str = ""
    presets: tuple[str, ...] = ()
    source: str = ""


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float().div(255)


def _read(path: Path) -> Tensor:
    return load_image(path).rgb


def _trim(image: Tensor, scale: int) -> Tensor:
    """Cut the borders of [1,3,H,W] evenly so that both edges are multiples of the scale."""
    height, width = image.shape[-2:]
    top, left = height % scale // 2, width % scale // 2
    return image[..., top : top + height // scale * scale, left : left + width // scale * scale]


def pick_crops(crops: list[dict], dice: random.Random) -> list[dict]:
    """Choose up to CROPS_PER_PHOTO of a photo's crops that share no part of the photo, native size first.

    Args:
        crops: of one photo, from `detailed_crops`.
        dice: decides among crops of one size.

    Returns:
        The chosen crops in the order of the draw.
    """
    chosen: list[dict] = []
    shuffled = dice.sample(crops, len(crops))
    for crop in sorted(shuffled, key=_reduction):
        if len(chosen) < CROPS_PER_PHOTO and not any(_overlap(crop, other) for other in chosen):
            chosen.append(crop)
    return chosen


def _reduction(crop: dict) -> int:
    return int(crop["scale"].split("/")[1])


def _overlap(one: dict, other: dict) -> bool:
    (a, b), sides = (one, other), [CROP * _reduction(crop) for crop in (one, other)]
    starts = [(a[axis] * _reduction(a), b[axis] * _reduction(b)) for axis in ("x", "y")]
    return all(start < end + sides[1] and end < start + sides[0] for start, end in starts)


def _photo_items(cache: Path, scale: int) -> Iterator[Item]:
    number = 0
    for source in PHOTO_SOURCES:
        folder = fetch(source, cache)
        package = (folder / "FETCHED").read_text(encoding="utf-8")
        for path, licence, photo in photos(source, folder):
            # The photo's own name decides, so that another photo more or less changes no crop of this one.
            crops = detailed_crops(photo, scales=SCALES, min_detail=MIN_DETAIL)
            for crop in pick_crops(crops, random.Random(Path(path).name)):
                hr = partial(_trim, _to_tensor(crop.pop("image")), scale)
                origin = {"package": package, "path": path, **crop}
                yield Item(stem=f"{number:04d}", origin=origin, licence=licence, hr=hr)
                number += 1


def _original_items(read: Callable[[Path, int], Tensor], folder: Path, scale: int) -> Iterator[Item]:
    for path in list_images(folder):
        yield Item(stem=path.stem, origin={"path": path.name}, hr=partial(read, path, scale))


def _original(path: Path, scale: int) -> Tensor:
    return _trim(_read(path), scale)


def _div2k_original(path: Path, scale: int) -> Tensor:
    image = _read(path)
    factor = DIV2K_SHORT_EDGE / min(image.shape[-2:])
    height, width = (round(length * factor) for length in image.shape[-2:])
    return _trim(resize(image, (height, width)), scale)


def _input_items(folder: Path, scale: int) -> Iterator[Item]:
    for path in list_images(folder):
        yield Item(stem=path.stem, origin={"path": path.name}, lr=partial(_read, path))


# Patterns of HR and LR files below the folder: crops of later papers, the published folders, or one of these alone.
_LAYOUTS = (
    ("test_HR/*", "test_LR/*"),
    ("Test_x{scale}/test_HR/*", "Test_x{scale}/test_LR/*"),
    ("*/Test/{scale}/*_HR.*", "*/Test/{scale}/*_LR{scale}.*"),
    ("Test/{scale}/*_HR.*", "Test/{scale}/*_LR{scale}.*"),
    ("*_HR.*", "*_LR{scale}.*"),
    ("HR/*", "LR/*"),
)


def _by_name(folder: Path, pattern: str) -> dict[str, Path]:
    """Find a pattern's pictures by what HR and LR names share: Canon_001_HR, Canon_001_LR4 are Canon_001."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(pattern)):
        name = re.sub(r"_(HR|LR\d*|x\d)$", "", path.stem)
        if path.suffix.lower() not in INPUT_SUFFIXES:
            continue
        if name in found:
            raise SetError(f"{path}: expected one picture of each name, found {found[name]} as well; rename one")
        found[name] = path
    return found


def _pair_items(folder: Path, scale: int) -> Iterator[Item]:
    for patterns in _LAYOUTS:
        originals, inputs = (_by_name(folder, pattern.format(scale=scale)) for pattern in patterns)
        if originals and inputs:
            break
    else:
        raise SetError(
            f"{folder}: expected test_HR/* with test_LR/*, or Test/{scale}/*_HR.png with *_LR{scale}.png, found "
            "neither; pass the data set's folder as it was unpacked"
        )
    if alone := sorted(originals.keys() ^ inputs.keys()):
        raise SetError(
            f"{folder}: expected an HR and an LR picture for each name, got only one of {alone[0]!r} "
            f"({len(alone)} such names); complete the folder"
        )
    for stem, path in originals.items():
        other = inputs[stem]
        origin = {name: found.relative_to(folder).as_posix() for name, found in (("hr", path), ("lr", other))}
        yield Item(stem=stem, origin=origin, hr=partial(_read, path), lr=partial(_read, other))


_PAIRS = "; pass its folder, or one with the StableSR authors' 128 to 512 crops in test_HR and test_LR"
SETS = {
    "photos": SetSpec(items=_photo_items, presets=("plain", "light", "stock")),
    "folder": SetSpec(
        items=partial(_original_items, _original),
        licence="of whoever made the folder",
        presets=("plain", "light", "stock"),
        source="pass any folder of original pictures",
    ),
    "div2k-val": SetSpec(
        items=partial(_original_items, _div2k_original),
        count=100,
        licence="academic research only (DIV2K)",
        presets=("stock",),
        source="DIV2K's home page publishes it as DIV2K_valid_HR (0801.png to 0900.png); pass that folder",
    ),
    "realphoto60": SetSpec(
        items=_input_items,
        count=60,
        licence="see SUPIR's repository",
        source="the repository of SUPIR (Fanghua-Yu/SUPIR) links RealPhoto60; pass the folder of its 60 inputs",
    ),
    "ram50": SetSpec(
        items=_input_items,
        count=50,
        licence="see the rules of the challenge",
        source="the NTIRE 2024 challenge 'Restore Any Image Model in the Wild' publishes the final test set; "
        "pass the folder of its 50 inputs",
    ),
    "realsr": SetSpec(
        items=_pair_items,
        count=100,
        licence="see RealSR's repository",
        source="the repository csjcai/RealSR links version 3 (Canon and Nikon, Test/4/*_HR.png and *_LR4.png)" + _PAIRS,
    ),
    "drealsr": SetSpec(
        items=_pair_items,
        count=93,
        licence="see DRealSR's repository",
        source="the repository of DRealSR (CDC, Component Divide-and-Conquer) links it (Test_x4/test_HR, test_LR)"
        + _PAIRS,
    ),
}
