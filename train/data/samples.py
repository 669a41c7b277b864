"""One picture with its captions: what its files are called, where they lie, and its bytes."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from eam_core.images import INPUT_SUFFIXES

PICTURE_KINDS = tuple(suffix[1:] for suffix in INPUT_SUFFIXES)
SIDECAR_KINDS = ("sa.txt", "da.txt", "txt", "json")
# Written beside captions by train.caption; known, so that in a tar they do not part a picture from its captions.
_NOTE_KINDS = ("sa.json", "da.json")
# The shortest key that leaves a known kind, so that "a.sa.txt" is the sa.txt of "a", and "1.5x.png" the png of "1.5x".
_NAME = re.compile(
    rf"(?P<key>.+?)\.(?P<kind>{'|'.join(map(re.escape, (*_NOTE_KINDS, *SIDECAR_KINDS, *PICTURE_KINDS)))})", re.I
)
_CROP = re.compile(r"-crop\d+$")


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes on disk: a whole file, or a part of a tar file."""

    file: str
    offset: int = 0
    length: int = -1  # -1: up to the end

    def read(self, limit: int = -1) -> bytes:
        """Read the bytes, or only the first `limit` of them."""
        length = self.length if limit < 0 else limit if self.length < 0 else min(limit, self.length)
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(length)


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture as stored: its key, the encoded picture and its sidecars by kind ("sa.txt", "txt", "json", ...)."""

    key: str
    picture: bytes
    sidecars: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture that can be read at any time."""

    key: str
    picture: Blob
    sidecars: Mapping[str, Blob] = field(default_factory=dict)

    def read(self) -> Sample:
        """Read picture and sidecars.

        Raises:
            OSError: a file has gone or cannot be read.
        """
        return Sample(self.key, self.picture.read(), {kind: blob.read() for kind, blob in self.sidecars.items()})


def split_name(name: str) -> tuple[str, str] | None:
    """Split a file's name into key and kind ("jpg", "sa.txt", ...); None for hidden, meta and other files."""
    base = name.rsplit("/", 1)[-1]
    # Names in double underscores are notes about a shard, which webdataset leaves out too.
    match = None if base.startswith((".", "__")) or name.startswith("__") else _NAME.fullmatch(name)
    return (match["key"], match["kind"].lower()) if match else None


def crop_key(key: str, index: int) -> str:
    """Return the key of a picture's crop number `index`."""
    return f"{key}-crop{index:02d}"


def photo_key(key: str) -> str:
    """Return the key of the picture that a crop was cut from; a key that is no crop's stays as it is."""
    return _CROP.sub("", key)


def key_hash(key: str) -> int:
    """Return a number in [0, 2^64) that is the same for all crops of one picture, in every process and run."""
    name = photo_key(key).encode(errors="surrogateescape")  # names of files may be no UTF-8
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def is_held_out(key: str, one_in: int) -> bool:
    """Say whether a picture belongs to validation; all crops of one picture fall on the same side."""
    return one_in > 0 and key_hash(key) % one_in == 0
