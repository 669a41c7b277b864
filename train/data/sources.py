"""From what the user names (folders, tars, patterns, layouts) to a list of photos, or of shards to stream."""

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from train.data.config import DataError
from train.data.layouts import LAYOUTS, layout_name, layout_pictures
from train.data.samples import PICTURE_KINDS, SIDECAR_KINDS, Blob, Photo, split_name

# Tars of less than this in all are read at random like folders: that mixes them best, and the index stays small.
INDEXED_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the sources hold: photos to be read at random, or tar shards to be streamed; never both."""

    photos: tuple[Photo, ...] = ()
    shards: tuple[str, ...] = ()


def resolve(data: Iterable[str]) -> Sources:
    """Find out what training reads. Tars of 1 GiB and more in all are streamed, smaller ones indexed.

    Raises:
        DataError: a source is missing or empty, or large shards are mixed with folders.
    """
    photos, tars = _split(data)
    if sum(os.path.getsize(tar) for tar in tars) < INDEXED_BYTES:
        return Sources(photos=_with_unique_keys([*photos, *_indexed(tars)]))
    if photos:
        raise DataError(
            "expected either folders of pictures or large .tar shards, got both; make shards of the folders with "
            "python -m train.prepare_data and name only shards."
        )
    return Sources(shards=tuple(tars))


def all_photos(data: Iterable[str]) -> tuple[Photo, ...]:
    """List every photo of the sources, with tars of any size indexed; raises as `resolve` does."""
    photos, tars = _split(data)
    return _with_unique_keys([*photos, *_indexed(tars)])


def index_tar(path: str) -> list[Photo]:
    """List a tar's photos by reading its headers alone.

    Raises:
        DataError: the tar is damaged.
    """
    groups: dict[str, dict[str, Blob]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = split_name(member.name.removeprefix("./")) if member.isreg() else None
                if name:
                    groups.setdefault(name[0], {})[name[1]] = Blob(path, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise damaged_tar(path, error) from error
    photos = []
    for key, blobs in groups.items():
        picture = next((blobs[kind] for kind in PICTURE_KINDS if kind in blobs), None)
        if picture:
            photos.append(Photo(key, picture, {kind: blobs[kind] for kind in SIDECAR_KINDS if kind in blobs}))
    return photos


def damaged_tar(path: str, error: Exception) -> DataError:
    """Say that a tar cannot be read."""
    return DataError(f"{path}: expected a whole .tar file, got a damaged one ({error}); copy or make it again.")


def _split(data: Iterable[str]) -> tuple[list[Photo], list[str]]:
    photos: list[Photo] = []
    tars: dict[str, None] = {}  # in order, each once
    data = list(data)
    if not data:
        raise DataError("expected a source of pictures, got none; give --data a folder, a .tar or NAME=FOLDER.")
    for source in data:
        name, equals, path = source.partition("=")
        layout = layout_name(name) if equals else None
        if layout:
            folder = _folder(path, source)
            photos += _photos(layout_pictures(layout, folder), layout, folder)
        elif Path(source).is_dir():
            folder = Path(source)
            found = sorted(str(tar) for tar in folder.glob("*.tar") if not tar.name.startswith("."))
            pictures = _pictures_below(folder)
            if found and pictures:
                raise DataError(
                    f"{source}: expected either pictures or .tar files, got both; name the tars as {folder / '*.tar'}."
                )
            if not found and not pictures:
                raise DataError(f"{source}: expected pictures or .tar shards, found none; check the folder.")
            tars |= dict.fromkeys(found)
            photos += _photos(pictures, folder.resolve().name, folder)
        else:
            tars |= dict.fromkeys(_tar_files(source))
    return photos, list(tars)


def _folder(path: str, source: str) -> Path:
    if not Path(path).is_dir():
        raise DataError(f"{source}: expected a folder after '=', found none at {path}; check the path.")
    return Path(path)


def _tar_files(source: str) -> list[str]:
    names = [source]
    if not Path(source).exists():
        names = [name for pattern in _braces(source) for name in _globbed(pattern)]
    for name in names:
        if not Path(name).is_file() or not name.endswith(".tar"):
            hint = f"known layouts are {', '.join(LAYOUTS)}" if "=" in source else "check the path"
            raise DataError(f"{source}: expected a folder of pictures or .tar files, found none at {name}; {hint}.")
    return names


def _braces(pattern: str) -> list[str]:
    """Expand the first {0000..0031} or {a,b}, then the rest."""
    before, brace, rest = pattern.partition("{")
    inner, end, after = rest.partition("}")
    if not brace or not end:
        return [pattern]
    first, dots, last = inner.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inner.split(",")
    return [before + choice + tail for choice in choices for tail in _braces(after)]


def _globbed(pattern: str) -> list[str]:
    if not any(c in pattern for c in "*?["):
        return [pattern]
    path = Path(pattern)
    return sorted(str(found) for found in path.parent.glob(path.name)) or [pattern]


def _pictures_below(folder: Path) -> list[Path]:
    found, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:  # links may lead back up
            found += [Path(here, name) for name in files if (split_name(name) or ("", ""))[1] in PICTURE_KINDS]
        seen.add(real)
    return sorted(found)


def _photos(paths: list[Path], source: str, folder: Path) -> list[Photo]:
    listings: dict[Path, set[str]] = {}
    photos = []
    for path in paths:
        here = path.parent
        if here not in listings:
            listings[here] = set(os.listdir(here))
        stem = path.name[: -len(path.suffix)]
        kinds = [kind for kind in SIDECAR_KINDS if f"{stem}.{kind}" in listings[here]]
        sidecars = {kind: Blob(str(here / f"{stem}.{kind}")) for kind in kinds}
        key = f"{source}/{path.relative_to(folder).with_suffix('').as_posix()}"
        photos.append(Photo(key, Blob(str(path)), sidecars))
    return photos


def _indexed(tars: list[str]) -> list[Photo]:
    return [photo for tar in tars for photo in index_tar(tar)]


def _with_unique_keys(photos: list[Photo]) -> tuple[Photo, ...]:
    """Number the second and later photos of one key: "0001.png" beside "0001.jpg", or of two folders of one name."""
    if not photos:
        raise DataError("expected tars with pictures, found none in them; check what they hold.")
    counts: dict[str, int] = {}
    unique = []
    for photo in photos:
        counts[photo.key] = number = counts.get(photo.key, 0) + 1
        unique.append(photo if number == 1 else replace(photo, key=f"{photo.key}~{number}"))
    return tuple(unique)
