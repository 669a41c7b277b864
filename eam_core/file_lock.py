"""Hold a file for a moment, so that other processes wait; the system frees it when a process ends, even if killed."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import DiskError

_AT = 2**30  # Windows locks bytes, and nobody else can read those: one that is behind all content
_PAUSE = 0.02


@contextlib.contextmanager
def held(path: Path, seconds: float = 60.0) -> Iterator[bool]:
    """Hold an existing file; yield whether it is held, which it never is on a drive without locks.

    Args:
        path: of the file; its content stays as it is, and can be read and written meanwhile.
        seconds: how long to wait for others.

    Raises:
        DiskError: another process held it all that time, or it cannot be opened for writing.
    """
    try:
        file = path.open("rb+")
    except OSError as error:
        raise DiskError(
            f"{path.name}: expected to open it for writing, could not ({error.strerror}); check that its drive is "
            "there and who may write it"
        ) from error
    with file:
        locked = _wait(file, path, seconds)
        try:
            yield locked
        finally:
            if locked:
                _release(file)


def _wait(file: IO[bytes], path: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            _take(file)
            return True
        except (BlockingIOError, PermissionError):
            if time.monotonic() > end:
                raise DiskError(
                    f"{path.name}: expected to write it in turn with others, but another program has held it for "
                    f"{seconds:.0f} s; end that program and queue again"
                ) from None
        except OSError:  # a drive without locks
            return False
        time.sleep(_PAUSE)


if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[bytes]) -> None:
        file.seek(_AT)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _release(file: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            file.seek(_AT)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _take(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(file: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
