"""A drive that fails at its n-th touch, once or from then on; everything that is opened, listed or looked at counts."""

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from eam_core import weight_files

_BY_PATH = ("open", "stat", "lstat", "scandir", "listdir", "mkdir", "unlink", "replace", "rename")


class FaultyDrive:
    """Stand in for the system's calls as long as the test's monkeypatch lasts.

    Args:
        monkeypatch: of the test.
        *folders: whose files count; all others work as ever.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
        self.folders, self.touches, self.fails = folders, 0, range(0)
        self.number = errno.EIO
        for name in _BY_PATH:
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name)))
        monkeypatch.setattr(builtins, "open", self._guarded(builtins.open))
        monkeypatch.setattr(io, "open", self._guarded(io.open))
        monkeypatch.setattr(shutil, "disk_usage", self._guarded(shutil.disk_usage))
        monkeypatch.setattr(weight_files, "safe_open", self._guarded(safe_open))
        monkeypatch.setattr(os, "fsync", self._guarded(os.fsync, always=True))

    def fail(self, at: int, number: int = errno.EIO, *, for_good: bool = False) -> None:
        """Fail at the touch of this count from now, or from it on."""
        self.touches, self.number = 0, number
        self.fails = range(at, 10**9 if for_good else at + 1)

    def work(self) -> None:
        """Work again."""
        self.touches, self.fails = 0, range(0)

    def count(self, do: Callable[[], Any]) -> int:
        """Return how often something touches the drive."""
        self.work()
        do()
        return self.touches

    def _guarded(self, call: Any, *, always: bool = False) -> Any:
        def guarded(*args: Any, **options: Any) -> Any:
            if always or (args and self._is_ours(args[0])):
                self.touches += 1
                if self.touches - 1 in self.fails:
                    raise OSError(self.number, os.strerror(self.number), str(args[0]))
            return call(*args, **options)

        return guarded

    def _is_ours(self, path: Any) -> bool:
        if not isinstance(path, (str, os.PathLike)):
            return False
        return any(os.fspath(path).startswith(str(folder)) for folder in self.folders)
