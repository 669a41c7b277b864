"""Write a file whole or not at all."""

import os
import secrets
from pathlib import Path

from .errors import DiskError


def write_whole(path: Path, data: bytes | memoryview, mark: str = "") -> None:
    """Write beside the target, then rename: a rename within one folder happens whole or not at all.

    Args:
        path: file to write; an older one of that name is replaced.
        data: all that it is to hold.
        mark: goes into the name that the file has until it is whole, so that what a killed process left can be told.

    Raises:
        DiskError: the file could not be written; nothing of it is left.
    """
    # Dotted, so that no listing shows it; not the target's name, which may be as long as names can be.
    part = path.with_name(f".{mark}{secrets.token_hex(8)}.part")
    try:
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(
            f"{path}: expected to write {len(data)} bytes, could not ({error.strerror or error}) and left nothing "
            "behind; free some space or choose another folder."
        ) from error
