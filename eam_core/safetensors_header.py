"""The header of a safetensors file, checked before anything takes memory because of what it promises.

The library that reads the tensors checks most of this as well. Here it is done first, within bounds that a header of
the format may pass, and with names that are safe to show.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import torch

SIZE_BYTES = 8  # a little-endian number in front of the header
# Published files have headers below 1 MiB and a few thousand tensors; sets larger than 50 GB come in shards.
MAX_HEADER_BYTES = 2**25
MAX_TENSORS = 2**17
MAX_FILE_BYTES = 2**40
MAX_RANK = 16
MAX_NAME = 1000
_MAX_NUMBERS = 2**60  # of axes that are not empty; beyond, strides no longer fit 64 bits

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Number formats of the file format that every supported torch can hold whole; F4 and F6 are none."""
_SCALES = "F8_E8M0"  # newer versions of torch have it
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES[_SCALES] = torch.float8_e8m0fnu


class HeaderError(ValueError):
    """The header breaks a rule; the message says which, as part of a sentence."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor as the header describes it.

    Attributes:
        dtype: of its numbers.
        shape: its axes.
        start, end: of its bytes, counted from the end of the header.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read and check the header of a safetensors file; its tensors are not touched.

    Args:
        path: a plain file that can be read.

    Returns:
        Entries by name.

    Raises:
        HeaderError: sizes, names, shapes, number formats or places of tensors are not what the format or a bound of
            this module allows.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(0)
        header_bytes = int.from_bytes(file.read(SIZE_BYTES), "little")
        data_bytes = file_bytes - SIZE_BYTES - header_bytes
        if data_bytes < 0:
            raise HeaderError(f"its header has {header_bytes} bytes, the whole file {file_bytes}")
        if header_bytes > MAX_HEADER_BYTES:
            raise HeaderError(f"its header has {header_bytes} bytes, at most {MAX_HEADER_BYTES} are read")
        if file_bytes > MAX_FILE_BYTES:
            raise HeaderError(f"it has {file_bytes} bytes, at most {MAX_FILE_BYTES} are read")
        fields = _parse(file.read(header_bytes))
    _check_metadata(fields.pop("__metadata__", {}))
    if len(fields) > MAX_TENSORS:
        raise HeaderError(f"it lists {len(fields)} tensors, at most {MAX_TENSORS} are read")
    entries = {name: _entry(name, value) for name, value in fields.items()}
    _check_places(entries, data_bytes)
    return entries


def _parse(header: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(header.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except HeaderError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise HeaderError("its header is no JSON of the usual kind") from error
    if not isinstance(fields, dict):
        raise HeaderError("its header is no list of tensors")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two tensors of one name, this reader and another one may take different ones.
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise HeaderError("its header has two entries of one name")
    return fields


def _no_constant(name: str) -> None:
    raise HeaderError(f"its header holds {name}")


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("its metadata are not texts by name")


def _entry(name: str, value: Any) -> TensorEntry:
    # Names are shown in messages: none may move a terminal's cursor or hide what follows.
    if not name.isprintable() or len(name) > MAX_NAME:
        raise HeaderError(f"a tensor's name is not a line of up to {MAX_NAME} characters: {name[:40]!a}")
    fields = value if isinstance(value, dict) else {}
    kind, shape, places = (fields.get(field) for field in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in DTYPES:
        raise HeaderError(f"tensor {name!r} has the unknown number format {ascii(kind)[:40]}")
    if not _are_counts(shape) or len(shape) > MAX_RANK or prod(max(axis, 1) for axis in shape) > _MAX_NUMBERS:
        raise HeaderError(f"tensor {name!r} has an impossible shape")
    if not _are_counts(places) or len(places) != 2:
        raise HeaderError(f"tensor {name!r} has no start and end")
    start, end = places
    promised = prod(shape) * DTYPES[kind].itemsize
    if end - start != promised:
        raise HeaderError(f"tensor {name!r} promises {promised} bytes and has a place of {end - start}")
    return TensorEntry(dtype=DTYPES[kind], shape=tuple(shape), start=start, end=end)


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_places(entries: dict[str, TensorEntry], data_bytes: int) -> None:
    """Refuse tensors that overlap, leave a hole, or need more or fewer bytes than the file has."""
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != reached:
            raise HeaderError(f"tensor {name!r} begins at byte {entry.start} instead of {reached}")
        reached = entry.end
    if reached != data_bytes:
        raise HeaderError(f"its tensors need {reached} bytes, it has {data_bytes}")
