"""Picture files of strangers: which are opened at all, what decoding may cost, which metadata are believed."""

import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps

from .errors import ImageError

# Only formats that Pillow decodes in process: among the others, EPS would start an interpreter on the file's program.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 2**26  # 8192 x 8192
MAX_FILE_BYTES = 2**30  # the largest picture that is read, with 16 bits per channel, and as much again
# Each goes over the whole picture, whatever it adds: a second of work for a hundred bytes of file. Encoders write 10.
MAX_SCANS = 64
_SPARE_TILE = 2**24  # pixels of a TIFF's tile that may be more than the picture's own; all of a tile is decoded
# Pillow reads back no larger one from PNG.
MAX_PROFILE_BYTES = 2**20

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # in a JPEG's compressed data, none but real ones
_XMP_ORIENTATION = re.compile(r"tiff:Orientation(?:=\"|>)([1-8])\D")


@contextmanager
def open_picture(path: Path, data: bytes | None = None) -> Iterator[tuple[Image.Image, IO[bytes]]]:
    """Open a picture and read its header only; the pixels are decoded later, once the size is known to be bearable.

    Args:
        path: of a plain file.
        data: what the file holds, where it was read already; path is its name then.

    Yields:
        The picture, and the file that it is read from.

    Raises:
        ImageError: it cannot be opened, is none of `FORMATS`, or has far too many pixels.
        OSError: its drive fails.
    """
    with _opened(path) if data is None else io.BytesIO(data) as file:
        try:
            with quiet():
                image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ImageError(too_many_pixels(str(path), "more than twice as many")) from error
        except Exception as error:  # readers of damaged files raise whatever they trip over
            if is_of_drive(error):
                raise
            raise ImageError(
                f"{path}: expected a PNG, JPEG, WebP, TIFF, BMP or GIF picture, got something else or a damaged file; "
                "open it in an image editor and save it as PNG."
            ) from error
        with image:
            yield image, file


def is_of_drive(error: Exception) -> bool:
    """Tell whether the system could not read a file; Pillow's own errors, of damaged ones, have no number."""
    return isinstance(error, OSError) and error.errno is not None


def too_many_pixels(name: str, got: str) -> str:
    """Say that a picture has more pixels than are decoded."""
    return f"{name}: expected at most {MAX_PIXELS // 10**6} million pixels, got {got}; crop or shrink it first."


def _opened(path: Path) -> IO[bytes]:
    try:
        return open_plain(path)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: expected a picture, found no such file; check the path.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"{path}: expected a readable file, got {reason}; check its permissions.") from error


def open_plain(path: Path) -> IO[bytes]:
    """Open a plain file of bearable size; a pipe would wait for ever, a device would never end.

    Raises:
        ImageError: it is a folder, a pipe, a device, or too large.
        OSError: it cannot be opened.
    """
    try:
        # Without waiting for whoever writes into a pipe; of no effect on plain files.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # NUL, or half a character
        raise ImageError(f"{path}: expected a picture, got a name that no file has; check the path.") from error
    except PermissionError:
        if path.is_dir():  # on Windows
            raise ImageError(_not_plain(path, stat.S_IFDIR)) from None
        raise
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(_not_plain(path, found.st_mode))
        if found.st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{path}: expected a file of at most {MAX_FILE_BYTES / 1e6:.0f} MB, got {found.st_size / 1e6:.0f} MB; "
                "save the picture again, compressed."
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_cost(image: Image.Image, file: IO[bytes], name: str) -> None:
    """Refuse files of which little is read into much: more than their pixels account for.

    Args:
        image: opened, not decoded.
        file: what it is read from; its position is kept.
        name: what to call the picture in the message.

    Raises:
        ImageError: a TIFF's tiles are far larger than the picture, or a JPEG has more scans than any encoder writes.
    """
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        width, height = (tags.get(tag, 0) for tag in (322, 323))
        if isinstance(width, int) and isinstance(height, int):
            pixels = width * height
            if pixels > 2 * image.width * image.height + _SPARE_TILE:
                got = f"got tiles of {width} x {height} for {image.width} x {image.height}"
                raise ImageError(f"{name}: expected tiles that fit the picture, {got}; save it again.")
    elif image.format in ("JPEG", "MPO"):
        place = file.tell()
        file.seek(0)
        scans = count_scans(file.read())
        file.seek(place)
        if scans > MAX_SCANS:
            got = f"got {scans} or more"
            raise ImageError(f"{name}: expected a JPEG of at most {MAX_SCANS} scans, {got}; save it again.")


def count_scans(data: bytes) -> int:
    """Count the scans of a JPEG's first picture, up to one more than is allowed."""
    place, scans = 2, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(data, place)):
        kind, place = marker[1][0], marker.end()
        if kind == 0xD9:  # its end; what follows is another file's
            break
        if kind in (0x01, 0xD8):  # these have no length
            continue
        scans += kind == 0xDA
        place += max(2, int.from_bytes(data[place : place + 2], "big"))
    return scans


def upright(image: Image.Image) -> Image.Image:
    """Turn a decoded picture as its EXIF data say; damaged ones say nothing."""
    if image.format == "TIFF":  # its directory was read to open it, and Pillow turns it itself
        try:
            with quiet():
                return ImageOps.exif_transpose(image)
        except Exception:  # readers of damaged directories raise whatever they trip over
            return image
    turn = _TURNS.get(orientation(image.info))
    return image if turn is None else image.transpose(turn)


def sound_profile(profile: Any) -> bytes | None:
    """Return an RGB colour profile if its outline is right, so that results may carry it; otherwise None.

    A grey or CMYK profile does not describe the RGB that is made of its picture.
    """
    if not isinstance(profile, bytes) or not 132 <= len(profile) <= MAX_PROFILE_BYTES:
        return None
    size, count = struct.unpack(">I", profile[:4])[0], struct.unpack(">I", profile[128:132])[0]
    if profile[16:20] != b"RGB " or profile[36:40] != b"acsp" or size > len(profile) or 132 + 12 * count > size:
        return None
    for start in range(132, 132 + 12 * count, 12):
        offset, length = struct.unpack(">II", profile[start + 4 : start + 12])
        if offset + length > size:
            return None
    return profile


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what Pillow warns of to ourselves: one damaged file can give thousands of lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _not_plain(path: Path, mode: int) -> str:
    if stat.S_ISDIR(mode):
        return f"{path}: expected a picture, got a folder; name one file inside it."
    return f"{path}: expected a plain file, got a pipe, a socket or a device; copy the picture into a file."


def orientation(info: dict[Any, Any]) -> int:
    """Return EXIF's orientation, 1 to 8, from where Pillow leaves metadata; 1 where it is missing or damaged.

    Pillow would read all of the directory, and make much of one whose entries share their bytes.
    """
    data = info.get("exif")
    raw = info.get("Raw profile type exif")  # of older programs, in PNG
    if not data and isinstance(raw, str):
        try:
            data = bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:
            return 1
    found = _directory_orientation(data) if isinstance(data, bytes) else None
    if found is None:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp")
        text = xmp.decode("latin-1") if isinstance(xmp, bytes) else xmp
        match = _XMP_ORIENTATION.search(text) if isinstance(text, str) else None
        found = int(match[1]) if match else None
    return 1 if found is None else found


def _directory_orientation(data: bytes) -> int | None:
    while data.startswith(b"Exif\0\0"):
        data = data[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        for start in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(f"{order}HHIH", data, start)
            if tag == _ORIENTATION:
                return value if (kind, number) == (3, 1) else None
    except struct.error:  # cut off
        pass
    return None
