"""What a case may not do besides ending badly: write outside its folder, open a connection, start a program."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event, and which of its arguments are paths that would change, with the folder that each is relative to, if any.
_CHANGES = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
}
_NEVER = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
)
_UNPICKLING = ("pickle.find_class",)


class Guard:
    """Collect what forbidden things happen while a case runs; Python's audit events say so, whoever does them."""

    def __init__(self, allowed: Path) -> None:
        """Allow changes below one folder only."""
        self._allowed = os.path.realpath(allowed) + os.sep
        self._on = False
        self.found: list[str] = []
        sys.addaudithook(self._hear)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen for the length of a case."""
        self._on, self.found = True, []
        try:
            yield
        finally:
            self._on = False

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITING and isinstance(path, str | bytes | os.PathLike):
                self._check("open", path)
        elif event in _CHANGES:
            for place, folder in _CHANGES[event]:
                self._check(event, args[place], -1 if folder is None else args[folder])
        elif event in _NEVER or event in _UNPICKLING:
            self.found.append(event)

    def _check(self, event: str, path: Any, folder: int = -1) -> None:
        if isinstance(path, int):
            return
        try:
            parent = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else ""
            real = os.path.realpath(os.path.join(parent, os.fsdecode(path)))
        except (ValueError, OSError):  # a name that no file has
            return
        if not real.startswith(self._allowed) and real != os.devnull:
            self.found.append(f"{event} {real}")


def listing(folder: Path, leave_out: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder but for one part of it."""
    files = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) != leave_out]
        for name in names:
            found = os.lstat(os.path.join(parent, name))
            files[os.path.join(parent, name)] = (found.st_size, found.st_mtime_ns)
    return files


Run = Callable[[bytes, Path], None]
