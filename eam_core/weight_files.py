"""Weight files on disk: safetensors read safely and written whole. Nothing here is ever unpickled."""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError, DiskError
from .safetensors_header import DTYPES, SIZE_BYTES, HeaderError, read_header


def read_weights(
    path: str | Path, *, device: str = "cpu", only: Callable[[str], bool] | None = None, rows: int | None = None
) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Args:
        path: the file.
        device: where the tensors go; "meta" gives shapes and dtypes without reading the data.
        only: tells by its key whether a tensor is wanted; the others are not read. All are when None.
        rows: how many rows of each tensor to read; all when None, and of single numbers.

    Returns:
        Tensors by key.

    Raises:
        CheckpointError: missing, a folder or pipe, pickled, damaged, truncated or not safetensors; nothing is read
            before the header is checked.
    """
    with _opened(Path(path), "cpu" if device == "meta" else device) as file:
        keys = [key for key in file.keys() if only is None or only(key)]  # noqa: SIM118 (not a dict)
        if device == "meta":
            return {key: _meta(file.get_slice(key)) for key in keys}
        return {key: _first_rows(file, key, rows) for key in keys}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the text metadata of a safetensors file ({} when it has none); raises like `read_weights`."""
    with _opened(Path(path), "cpu") as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    _refuse_unreadable(path)
    try:
        read_header(path)
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (HeaderError, SafetensorError, OSError) as error:
        raise CheckpointError(
            f"expected a whole safetensors file, but {path.name} is damaged or truncated ({error}); download it again"
        ) from error


def _meta(tensor_slice: Any) -> Tensor:
    return torch.empty(tensor_slice.get_shape(), dtype=DTYPES[tensor_slice.get_dtype()], device="meta")


def _first_rows(file: Any, key: str, rows: int | None) -> Tensor:
    if rows is None or not file.get_slice(key).get_shape():  # a single number has no rows
        return file.get_tensor(key)
    return file.get_slice(key)[:rows]


def _refuse_unreadable(path: Path) -> None:
    try:
        if not path.exists():
            raise CheckpointError(f"expected a weight file at {path}, found none; check the name and the folder")
        if path.is_dir():
            raise CheckpointError(f"expected a .safetensors file, got the folder {path}; name the file inside it")
        if not path.is_file():  # a pipe would wait for a writer for ever
            raise CheckpointError(f"expected a .safetensors file, but {path} is a device or pipe; name a plain file")
        with path.open("rb") as file:
            start, size = file.read(16), path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"expected a readable weight file, got {path} ({error.strerror}); check it") from error
    if start[SIZE_BYTES : SIZE_BYTES + 1] == b"{" and int.from_bytes(start[:SIZE_BYTES], "little") <= size - SIZE_BYTES:
        return  # asked first: the header size of a good file may look like a pickle's first bytes
    if _looks_pickled(start):
        raise CheckpointError(
            f"expected a safetensors file, but {path.name} is a pickle, which can run code when opened; "
            "get the .safetensors version of these weights"
        )
    if start[:4] == b"GGUF":
        raise CheckpointError(
            f"expected a safetensors file, but {path.name} is GGUF; load it with a GGUF loader node and pass its MODEL"
        )
    raise CheckpointError(
        f"expected a whole safetensors file, but {path.name} is truncated or something else; download it again"
    )


def _looks_pickled(start: bytes) -> bool:
    # Zip archives of torch.save, and the first opcode of a pickle of protocol 2 and later.
    return start[:2] in (b"PK", *(bytes((0x80, protocol)) for protocol in range(2, 8)))


def save_weights(
    path: str | Path, state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None, **metadata: Any
) -> None:
    """Write a safetensors file that appears under its name only when it is whole.

    Args:
        path: target; its folder is made if missing.
        state: tensors by key.
        dtype: floating tensors are cast to it; unchanged when None.
        metadata: values stored as JSON under the file's text metadata.

    Raises:
        DiskError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    tensors = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for key, value in state.items()
    }
    # Dotted, so that no listing shows it; not the target's name, which may be as long as names can be.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            save_file(tensors, part, metadata={key: json.dumps(value) for key, value in metadata.items()})
            part.chmod(mode)  # safetensors makes files that only their owner can read
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"could not write {path} ({error}); free some space or choose another folder") from error
