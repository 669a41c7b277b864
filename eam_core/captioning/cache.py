"""Captions on disk, so that the same question to the same model about the same picture is asked once."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import DiskError
from .caption import Caption


def picture_hash(picture: Tensor) -> str:
    """Return a hash of what a picture [3,H,W] in [0,1] shows, to eight bits."""
    pixels = picture.mul(255).round().clamp(0, 255).byte().cpu().contiguous()
    return hashlib.sha256(repr(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()


class CaptionCache:
    """A folder with one JSON file per answer."""

    def __init__(self, folder: str | Path):
        """Keep the path; the folder is made when there is something to keep."""
        self.folder = Path(folder).expanduser()

    def read(self, key: dict[str, Any]) -> Caption | None:
        """Return what is kept under a key; None if nothing is, or a damaged file."""
        try:
            return Caption.from_json(json.loads(self._path(key).read_text(encoding="utf-8"))["answer"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, key: dict[str, Any], caption: Caption) -> None:
        """Keep a caption; the file appears whole or not at all.

        Raises:
            DiskError: the folder cannot be written.
        """
        path = self._path(key)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        text = json.dumps({"key": key, "answer": caption.as_json()}, ensure_ascii=False, indent=1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_text(text + "\n", encoding="utf-8")
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(
                f"{self.folder}: could not keep a caption ({error.strerror or error}); choose another cache folder"
            ) from error

    def _path(self, key: dict[str, Any]) -> Path:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"
