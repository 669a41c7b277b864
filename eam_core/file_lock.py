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
def held(path: Path, seconds: float = 60.0) -> Iterator[None]:
    """Hold an existing file; on a drive without locks, go on without.

    Args:
        path: of the file; its content stays as it is, and can be read and written meanwhile.
        seconds: how long to wait for others.

    Raises:
        DiskError: another process held it all that time.
    """
    try:
        file = path.open("rb+")
    except OSError:  # whoever needs the file next says what is wrong with it
        yield
        return
    with file:
        _wait(file, path, seconds)
        try:
            yield
        finally:
            _release(file)


def _wait(file: IO[bytes], path: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            _take(file)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() > end:
                raise DiskError(
                    f"{path.name}: expected to write it in turn with others, but another program has held it for "
                    f"{seconds:.0f} s; end that program and queue again"
                ) from None
        except OSError:  # a drive without locks
            return
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
