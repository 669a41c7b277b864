"""Folders that a batch reads from and writes to: those on a disk, and what any other must offer."""

import errno
import os
import re
import warnings
from pathlib import Path
from typing import Protocol

from .errors import DiskError, FolderError, ImageError
from .folder_names import list_pictures
from .folder_places import is_inside
from .folder_results import is_gone, is_lasting
from .picture_files import open_plain
from .whole_file import write_whole

MARK = "eam_batch-"  # in the names of files that are not whole yet
_PART = re.compile(rf"\.{MARK}[0-9a-f]{{16}}\.part")


class Folder(Protocol):
    """What a batch asks of a folder; names are paths relative to it, with / between parts.

    Attributes:
        url: what it is called, the same on every machine that can reach it; without passwords, for any eye.
        address: what opens it, passwords included; for workers alone.
        place: the file system and the path in it, equal for all names of one folder.
        path: where it lies on a disk of this machine; None for one that fsspec reaches.
    """

    url: str
    address: str
    place: tuple[str, str]
    path: Path | None

    def pictures(self, subfolders: bool) -> dict[str, int]:
        """Return the pictures and their sizes in bytes, in natural order.

        Raises:
            FolderError: there are none, or the folder cannot be read.
        """
        ...

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file in it and below, hidden ones included; {} for a missing folder."""
        ...

    def read(self, name: str) -> bytes:
        """Return what a file holds.

        Raises:
            ImageError: it cannot be read.
            FolderError: the whole folder is gone.
        """
        ...

    def peek(self, name: str) -> bytes | None:
        """Return what a file holds, None for a missing one.

        Raises:
            FolderError: it cannot be read.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, in place of an older one.

        Raises:
            DiskError: it could not be written.
            FolderError: nor could any other.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; one that is missing already is fine."""
        ...


class LocalFolder:
    """A folder on a disk or a network drive of this machine."""

    def __init__(self, path: Path) -> None:
        self.path: Path | None = Path(os.path.realpath(path))
        self._root = self.path
        self.url = self.address = str(self._root)
        self.place: tuple[str, str] = ("file", self._root.as_posix())

    def pictures(self, subfolders: bool) -> dict[str, int]:
        """See `Folder`."""
        if not self._root.is_dir():
            raise FolderError(f"{self.url}: expected a folder of pictures, found none there; check its name")
        names = [name for name in list_pictures(self._root, subfolders=subfolders) if is_portable(name)]
        if not names:
            raise FolderError(f"{self.url}: expected a folder with pictures in it, found none; check the path")
        return {name: _size(self._root / name) for name in names}

    def sizes(self) -> dict[str, int]:
        """See `Folder`."""
        found = {}
        for folder, _, files in os.walk(self._root):
            prefix = Path(folder).relative_to(self._root).as_posix()
            for file in files:
                name = file if prefix == "." else f"{prefix}/{file}"
                found[name] = _size(self._root / name)
        return found

    def read(self, name: str) -> bytes:
        """See `Folder`; a link that leads outside is refused."""
        path = self._root / name
        try:
            if not is_inside(Path(os.path.realpath(path)), [self._root]):
                raise ImageError(f"{name}: expected a file in the folder, got a link that leads outside; copy it there")
            with open_plain(path) as file:
                return file.read()
        except (ImageError, OSError) as error:
            if is_gone(self._root):
                raise FolderError(
                    f"{self.url}: expected the folder of pictures to stay, but it is gone or empty; bring its drive "
                    "back and start again to go on"
                ) from error
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{path}: expected a readable file, got {error.strerror or error}; check it") from error

    def peek(self, name: str) -> bytes | None:
        """See `Folder`."""
        path = self._root / name
        try:
            # A pipe would wait for a writer for ever.
            return path.read_bytes() if path.is_file() else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FolderError(f"{path}: expected a readable file ({error.strerror}); check it") from error

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        path = self._root / name
        try:
            # Made anew, it would lie on another drive than the one that is gone.
            if not self._root.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            path.parent.mkdir(parents=True, exist_ok=True)
            if not is_inside(Path(os.path.realpath(path.parent)), [self._root]):
                raise DiskError(f"{name}: expected a place in the output folder, got a link that leads outside")
            write_whole(path, data, MARK)
        except DiskError as error:
            if is_lasting(error.__cause__, self._root):
                raise FolderError(f"{error} Then start again to go on.") from error
            raise
        except OSError as error:
            raise FolderError(f"{path}: could not be written ({error.strerror}); check the output folder") from error

    def append(self, name: str, data: bytes) -> None:
        """Add to a file's end and wait until the disk has it.

        Raises:
            FolderError: it could not be written.
        """
        try:
            with open(self._root / name, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FolderError(
                f"{name}: expected to add a line in {self.url}, could not ({error.strerror}); free some space or check "
                "the folder, then start again to go on"
            ) from error

    def remove(self, name: str) -> None:
        """See `Folder`."""
        (self._root / name).unlink(missing_ok=True)


def is_plain_name(name: object) -> bool:
    """Tell whether something is a path below a folder, on any system, whatever file or store it was read from."""
    if not isinstance(name, str) or set(name) & set("\\\0") or re.match(r"[A-Za-z]:", name):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def is_portable(name: str) -> bool:
    """Tell whether every system can hold a file of that name; warn about one that not every can.

    The manifest takes no other names, so a picture of such a name would be foreign to the next start.
    """
    if not is_plain_name(name):
        warnings.warn(f"{name!r} is left out: not every disk can hold a file of that name; rename it", stacklevel=3)
        return False
    return True


def refuse_links(folder: Folder, name: str) -> None:
    """Refuse to write one of the batch's own files where a link would lead elsewhere, or a pipe would wait.

    Raises:
        FolderError: the name is taken by something that is no plain file.
    """
    path = folder.path and folder.path / name
    if path and (path.is_symlink() or (path.exists() and not path.is_file())):
        raise FolderError(f"{name}: expected a plain file in the output folder, got another kind; remove it")


def tidy(folder: Folder, names: dict[str, int]) -> None:
    """Remove what killed processes left half written; names are those that `Folder.sizes` gave."""
    for name in [name for name in names if _PART.fullmatch(name.rpartition("/")[2])]:
        folder.remove(name)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it vanished; reading it will tell
        return -1
