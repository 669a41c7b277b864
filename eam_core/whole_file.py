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
        DiskError: the file could not be written; nothing of it is left, unless its drive is gone.
    """
    # Dotted, so that no listing shows it; not the target's name, which may be as long as names can be.
    part = path.with_name(f".{mark}{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        left = "left nothing behind" if _remove(part) else f"cannot remove {part.name}"
        raise DiskError(
            f"{path}: expected to write {len(data)} bytes, could not ({error.strerror or error}) and {left}; "
            "free some space or choose another folder."
        ) from error
    except BaseException:  # an interrupt
        _remove(part)
        raise


def _remove(part: Path) -> bool:
    """Remove what is there of a file; False where even that fails, as on a drive that is gone."""
    try:
        part.unlink(missing_ok=True)
    except OSError:
        return False
    return True
