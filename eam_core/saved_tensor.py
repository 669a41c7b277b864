"""One tensor as torch.save writes it, read without a pickle machine: its opcodes are listed, compared and never run.

torch.save's file is a zip archive: a small pickle that describes the tensor, and the numbers beside it. The description
of a single tensor is always the same row of opcodes, so whatever else stands there is refused.
"""

import pickletools
import struct
import zipfile
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MAX_PICKLE_BYTES = 2**14
_MAX_NUMBERS = 2**26
_STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
}
_NOTES = ("PROTO", "FRAME", "BINPUT", "LONG_BINPUT", "MEMOIZE")  # say nothing about what is described
_INTS = ("BININT", "BININT1", "BININT2", "LONG1")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE")


class NotATensor(ValueError):
    """The file is no archive of torch.save with one tensor in it; the message says why, as part of a sentence."""


def read_saved_tensor(path: Path) -> Tensor:
    """Read a file that `torch.save(tensor, path)` has written; nothing in it is run.

    Args:
        path: a plain file.

    Returns:
        The tensor, on the CPU.

    Raises:
        NotATensor: the file is damaged or holds anything else.
        OSError: it cannot be read.
    """
    if not path.is_file():
        path.open("rb").close()  # says what is wrong with it, but for a pipe
        raise NotATensor("it is no plain file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except NotATensor:
        raise
    except (zipfile.BadZipFile, struct.error, KeyError, ValueError, EOFError, RuntimeError) as error:
        raise NotATensor("it is no archive of torch.save") from error


def _read(archive: zipfile.ZipFile) -> Tensor:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise NotATensor("it is no archive of torch.save")
    folder = names[0].removesuffix("data.pkl")
    order = _record(archive, f"{folder}byteorder", 16) if f"{folder}byteorder" in archive.namelist() else b"little"
    if order != b"little":
        raise NotATensor("its numbers are not little-endian")
    words = _words(_record(archive, names[0], _MAX_PICKLE_BYTES))
    kind, key, count = _storage(words)
    if not key.isascii() or not key.isalnum() or not 0 <= count <= _MAX_NUMBERS:
        raise NotATensor("its numbers lie nowhere")
    dtype = _STORAGES[kind]
    data = _record(archive, f"{folder}data/{key}", count * dtype.itemsize)
    if len(data) != count * dtype.itemsize or not count:
        raise NotATensor("its numbers are not all there")
    (offset,), size, stride = _ints(words, 1), _tuple(words), _tuple(words)
    last = offset + sum((axis - 1) * step for axis, step in zip(size, stride))
    within = min((offset, *size, *stride)) >= 0 and (0 in size or last < count) and prod(size) <= _MAX_NUMBERS
    if len(size) != len(stride) or not within:
        raise NotATensor("its shape does not fit its numbers")
    _end(words)
    return torch.frombuffer(bytearray(data), dtype=dtype).as_strided(size, stride, offset).clone()


def _record(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    found = archive.getinfo(name)
    if found.file_size > most or found.compress_type != zipfile.ZIP_STORED:
        raise NotATensor(f"{ascii(name)[:60]} in it is packed or longer than {most} bytes")
    return archive.read(found)


def _words(data: bytes) -> list[tuple[str, Any]]:
    """List the opcodes of a pickle, last one first; they are taken from the end of the list."""
    try:
        found = [(opcode.name, value) for opcode, value, _ in pickletools.genops(data)]
    except Exception as error:  # it raises whatever it trips over
        raise NotATensor("its description is damaged") from error
    return [word for word in reversed(found) if word[0] not in _NOTES]


def _take(words: list[tuple[str, Any]], names: tuple[str, ...], *values: Any) -> Any:
    name, value = words.pop() if words else ("", None)
    if name not in names or (values and value not in values):
        raise NotATensor("it holds something that is not a tensor")
    return value


def _storage(words: list[tuple[str, Any]]) -> tuple[str, str, int]:
    """Read up to where the numbers lie: their kind, the name of their record, how many there are."""
    _take(words, ("GLOBAL",), "torch._utils _rebuild_tensor_v2")
    _take(words, ("MARK",))
    _take(words, ("MARK",))
    _take(words, _TEXTS, "storage")
    kind = _take(words, ("GLOBAL",), *_STORAGES)
    key = _take(words, _TEXTS)
    _take(words, _TEXTS)  # the device that it was on
    count = _take(words, _INTS)
    _take(words, ("TUPLE",))
    _take(words, ("BINPERSID",))
    return kind, key, count


def _ints(words: list[tuple[str, Any]], count: int) -> list[int]:
    return [_take(words, _INTS) for _ in range(count)]


def _tuple(words: list[tuple[str, Any]]) -> list[int]:
    marked = bool(words) and words[-1][0] == "MARK"
    if marked:
        words.pop()
    found = []
    while words and words[-1][0] in _INTS:
        found.append(words.pop()[1])
    usual = ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
    _take(words, ("TUPLE",) if marked else usual[len(found) : len(found) + 1])
    return found


def _end(words: list[tuple[str, Any]]) -> None:
    """Check what follows the shape: no gradient's history, no hooks, nothing more."""
    _take(words, ("NEWFALSE", "NEWTRUE"))
    _take(words, ("GLOBAL",), "collections OrderedDict")
    for name in ("EMPTY_TUPLE", "REDUCE", "TUPLE", "REDUCE", "STOP"):
        _take(words, (name,))
    if words:
        raise NotATensor("it holds more than a tensor")
