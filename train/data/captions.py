"""Captions: in a folder of their own, else beside the picture NAME.sa.txt or NAME.da.txt, NAME.txt or NAME.json."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Literal

from eam_core.errors import ImageError
from train.data.config import DataConfig, DataError
from train.data.pictures import measure
from train.data.samples import Photo, Sample, photo_key
from train.data.sources import all_photos

Captions = Literal["none", "sa", "da"]
WAY_OUT = "write it with python -m train.caption, take the picture away, or train with --captions none"


def caption_path(folder: str | Path, key: str, kind: str) -> Path | None:
    """Return where a folder of captions keeps a picture's; None for a key that leads out of the folder.

    Args:
        folder: of the captions.
        key: of the picture; tar files may hold any.
        kind: "sa.txt", "da.txt", "sa.json" or "da.json".
    """
    name = PurePath(f"{key}.{kind}")
    leads_out = name.is_absolute() or name.drive or ".." in name.parts or "\0" in key
    return None if leads_out else Path(folder) / name


def caption_of(sample: Sample, captions: Captions, caption_dir: str = "") -> str:
    """Return a picture's caption, "" if none is wanted.

    Raises:
        DataError: it has no caption of that kind.
    """
    if captions == "none":
        return ""
    text = find_caption(sample, captions, caption_dir)
    if text is None:
        raise DataError(f"{_expected(sample.key, captions, caption_dir)}; {WAY_OUT}.")
    return text


def find_caption(sample: Sample, captions: Captions, caption_dir: str = "") -> str | None:
    """Return a picture's caption of a kind from the folder of captions, else from beside it; None where it has none."""
    return _kept(sample.key, captions, caption_dir) or _caption(sample.sidecars, captions)


def check_captions(photos: Iterable[Photo], captions: Captions, caption_dir: str = "") -> None:
    """Refuse pictures without captions before any training.

    Raises:
        DataError: some have none; names the first and says how many they are.
    """
    if captions == "none":
        return
    photos = list(photos)
    missing = [photo for photo in photos if not _has_caption(photo, captions, caption_dir)]
    if missing:
        expected = _expected(missing[0].key, captions, caption_dir)
        raise DataError(f"{expected}, as for {len(missing)} of {len(photos)} pictures; {WAY_OUT}.")


def check_caption_dir(caption_dir: str) -> None:
    """Refuse a folder of captions that is none.

    Raises:
        DataError: it is missing.
    """
    if caption_dir and not Path(caption_dir).is_dir():
        raise DataError(f"--caption-dir: expected a folder, found none at {caption_dir}; check the path.")


def iter_captions(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Yield key and caption of every picture of the sources, held-out ones too, without reading the pictures.

    Raises:
        DataError: a source is missing or empty, or a picture has no caption.
    """
    check_caption_dir(config.caption_dir)
    # What is no picture is not trained on and could not be captioned.
    photos = [p for p in all_photos(config.data) if _has_caption(p, config.captions, config.caption_dir) or _opens(p)]
    check_captions(photos, config.captions, config.caption_dir)
    for photo in photos:
        yield photo.key, caption_of(Sample(photo.key, b"", _sidecars(photo)), config.captions, config.caption_dir)


def _expected(key: str, captions: Captions, caption_dir: str) -> str:
    folder = f"{caption_dir}/{key}.{captions}.txt, " if caption_dir else ""
    return f"{key}: expected a caption in {folder}{key}.{captions}.txt or {key}.txt, found none"


def _kept(key: str, captions: Captions, caption_dir: str) -> str | None:
    """Return the caption from the folder, for a crop without one of its own that of its picture."""
    for each in dict.fromkeys((key, photo_key(key))) if caption_dir else ():
        path = caption_path(caption_dir, each, f"{captions}.txt")
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip() if path else ""
        except OSError:
            continue
        if text:
            return text
    return None


def _opens(photo: Photo) -> bool:
    try:
        measure(photo.picture, photo.key)
    except ImageError:
        return False
    return True


def _sidecars(photo: Photo) -> dict[str, bytes]:
    return {kind: blob.read() for kind, blob in photo.sidecars.items()}


def _has_caption(photo: Photo, captions: Captions, caption_dir: str) -> bool:
    if captions == "none" or _kept(photo.key, captions, caption_dir):
        return True
    if photo.sidecars.keys() & {f"{captions}.txt", "txt"}:
        return True
    return _caption(_sidecars(photo), captions) is not None


def _caption(sidecars: Mapping[str, bytes], captions: Captions) -> str | None:
    for kind in (f"{captions}.txt", "txt"):
        if kind in sidecars:
            return sidecars[kind].decode("utf-8", errors="replace").strip()
    try:
        fields = json.loads(sidecars.get("json", b"{}"))
    except ValueError:  # a JSON file may hold anything, so a damaged one counts as no caption
        return None
    texts = [fields.get(name) for name in (captions, "caption")] if isinstance(fields, dict) else []
    return next((text.strip() for text in texts if isinstance(text, str)), None)
