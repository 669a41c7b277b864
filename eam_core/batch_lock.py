"""One batch at a time in an output folder: a lock that ends with its holder, however that ends."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from .batch_store import Folder, refuse_links
from .errors import DiskError, EAMError, FolderError
from .file_lock import held

LOCK = ".eam_batch.lock"


class Lock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Refuse to go on when somebody else has taken the lock.

        Raises:
            FolderError: it is lost.
        """
        ...


@contextlib.contextmanager
def locked(folder: Folder, lease: float = 30.0) -> Iterator[Lock]:
    """Hold the folder's lock.

    On a disk, the operating system holds it and frees it when the process ends, even by SIGKILL or with the machine. A
    store has no such lock, nor have some network drives: there a small file says that its holder lives, rewritten
    several times per lease; one that stays the same for a whole lease, on the watcher's own clock, is nobody's.

    Args:
        folder: of the results; on a disk it exists.
        lease: seconds.

    Raises:
        FolderError: another batch holds it, or it cannot be written.
    """
    if folder.path is not None:
        refuse_links(folder, LOCK)
        with _system_lock(folder.path / LOCK) as lock:
            if lock:
                yield lock
                return
    lock = _Lease(folder, lease)
    try:
        yield lock
    finally:
        lock.release()


class _SystemLock:
    def check(self) -> None:
        """Never lost while the process lives."""


@contextlib.contextmanager
def _system_lock(path: Path) -> Iterator[Lock | None]:
    """Yield None on a drive without locks."""
    try:
        path.touch()
    except OSError as error:
        raise FolderError(
            f"{path.parent}: expected a folder that can be written ({error.strerror}); choose another one"
        ) from error
    with contextlib.ExitStack() as stack:
        try:
            is_held = stack.enter_context(held(path, seconds=0))
        except DiskError as error:
            if isinstance(error.__cause__, OSError):
                raise FolderError(str(error)) from error
            with contextlib.suppress(OSError):
                raise _taken(
                    str(path.parent), path.read_text(encoding="utf-8", errors="replace")[:200].strip()
                ) from error
            raise
        if is_held:
            with contextlib.suppress(OSError):  # a note for people only
                path.write_text(_me(), encoding="utf-8")
        yield _SystemLock() if is_held else None


class _Lease:
    """The lock of a store."""

    def __init__(self, folder: Folder, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._token, self._beats, self._lost = secrets.token_hex(8), 0, False
        self._ended = threading.Event()
        seen = self._read()
        if seen:
            self._watch(seen)
        self._write()
        time.sleep(seconds / 30)  # of two that begin at once, the one who wrote last holds it
        if self._owner(self._read()) != self._token:
            raise _taken(folder.url, "")
        self._beat = threading.Thread(target=self._live, daemon=True)
        self._beat.start()

    def check(self) -> None:
        """See `Lock`."""
        if self._lost:
            raise FolderError(
                f"{self._folder.url}: expected to be the only batch in this output folder, got another one that took "
                "it over; start again when that one has ended"
            )

    def release(self) -> None:
        """Give the lock up."""
        self._ended.set()
        self._beat.join()
        with contextlib.suppress(EAMError):
            if self._owner(self._read()) == self._token:
                self._folder.remove(LOCK)

    def _watch(self, seen: bytes) -> None:
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            time.sleep(self._seconds / 10)
            now = self._read()
            if not now:
                return
            if now != seen:
                raise _taken(self._folder.url, str(_fields(now).get("holder", "")))

    def _live(self) -> None:
        while not self._ended.wait(self._seconds / 5):
            with contextlib.suppress(EAMError):  # a service that is away for a moment; the next beat tries again
                content = self._read()
                if content and self._owner(content) != self._token:
                    self._lost = True
                    return
                self._write()

    def _read(self) -> bytes:
        return self._folder.peek(LOCK) or b""

    def _write(self) -> None:
        self._beats += 1
        fields = {"owner": self._token, "holder": _me(), "beats": self._beats}
        self._folder.write(LOCK, json.dumps(fields).encode())

    def _owner(self, content: bytes) -> str:
        return str(_fields(content).get("owner", ""))


def _fields(content: bytes) -> dict[str, object]:
    try:
        fields = json.loads(content)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _taken(folder: str, holder: str) -> FolderError:
    by = f" ({holder})" if holder else ""
    return FolderError(
        f"{folder}: expected an output folder that no other batch works on, got one in use{by}; wait for its end or "
        "choose another folder"
    )
