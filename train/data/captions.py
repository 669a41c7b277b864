"""Captions beside the pictures: NAME.sa.txt or NAME.da.txt, else NAME.txt, else a field of NAME.json."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from train.data.config import DataConfig, DataError
from train.data.samples import Photo, Sample
from train.data.sources import all_photos

Captions = Literal["none", "sa", "da"]
WAY_OUT = "write the files or train with --captions none"


def caption_of(sample: Sample, captions: Captions) -> str:
    """Return a picture's caption, "" if none is wanted.

    Raises:
        DataError: it has no caption of that kind.
    """
    text = "" if captions == "none" else _caption(sample.sidecars, captions)
    if text is None:
        raise DataError(
            f"{sample.key}: expected a caption in {sample.key}.{captions}.txt or {sample.key}.txt, found none; "
            f"{WAY_OUT}."
        )
    return text


def check_captions(photos: Iterable[Photo], captions: Captions) -> None:
    """Refuse pictures without captions before any training.

    Raises:
        DataError: some have none; names the first and says how many they are.
    """
    if captions == "none":
        return
    photos = list(photos)
    missing = [photo for photo in photos if not _has_caption(photo, captions)]
    if missing:
        key = missing[0].key
        raise DataError(
            f"{key}: expected a caption in {key}.{captions}.txt or {key}.txt, found none, as for {len(missing)} of "
            f"{len(photos)} pictures; {WAY_OUT}."
        )


def iter_captions(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Yield key and caption of every picture of the sources, held-out ones too, without reading the pictures.

    Raises:
        DataError: a source is missing or empty, or a picture has no caption.
    """
    photos = all_photos(config.data)
    check_captions(photos, config.captions)
    for photo in photos:
        yield photo.key, caption_of(Sample(photo.key, b"", _sidecars(photo)), config.captions)


def _sidecars(photo: Photo) -> dict[str, bytes]:
    return {kind: blob.read() for kind, blob in photo.sidecars.items()}


def _has_caption(photo: Photo, captions: Captions) -> bool:
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
