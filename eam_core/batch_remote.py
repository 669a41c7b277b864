"""Folders of a batch by path or URL: those on a disk, and through fsspec all others."""

import os
import re
from pathlib import Path
from typing import Any

from .batch_store import MARK, Folder, LocalFolder, is_portable
from .errors import DiskError, FolderError, ImageError
from .images import INPUT_SUFFIXES, natural_key
from .picture_files import MAX_FILE_BYTES

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")


def open_folder(text: str) -> Folder:
    """Return the folder that a path or URL names.

    Args:
        text: a path, or a URL such as s3://bucket/folder or memory://folder.

    Raises:
        FolderError: the URL is of a kind that no installed package serves, or its service refuses.
    """
    if not _SCHEME.match(text):
        return LocalFolder(Path(text))
    try:
        import fsspec
    except ImportError as error:
        raise FolderError(f"expected the package fsspec, which opens {text!r}, found none; install it") from error
    try:
        files, root = fsspec.core.url_to_fs(text)
        protocol = files.protocol if isinstance(files.protocol, str) else files.protocol[0]
        if protocol in ("file", "local"):
            return LocalFolder(Path(root))
        return RemoteFolder(files, root, text.rstrip("/"))
    except ImportError as error:
        raise FolderError(f"expected a package that opens {text!r}, found none; {_hint(error)}") from error
    except ValueError as error:
        raise FolderError(
            f"expected a path or a URL that fsspec knows, such as s3://bucket/folder, got {text!r}; correct it"
        ) from error
    except Exception as error:  # services raise errors of their own
        raise FolderError(
            f"expected to open {text!r}, could not ({_said(error)}); check its name and your rights"
        ) from error


class RemoteFolder:
    """A folder that fsspec reaches.

    Args:
        files: an fsspec file system.
        root: of the folder in it.
        url: what the user calls it.
    """

    def __init__(self, files: Any, root: str, url: str) -> None:
        import fsspec

        self._files, self._root, self.url = files, root.rstrip("/"), url
        self.path: Path | None = None
        # Without a rename of its own, fsspec copies: there, as in object stores, an object is put whole or not at all.
        self._renames = type(files).mv is not fsspec.AbstractFileSystem.mv

    def pictures(self, subfolders: bool) -> dict[str, int]:
        """See `Folder`."""
        try:
            found = self._list(None if subfolders else 1)
        except FileNotFoundError:
            found = {}
        except Exception as error:  # each service has errors of its own
            raise FolderError(
                f"{self.url}: expected a folder that can be read, got {_said(error)}; check it"
            ) from error
        names = [name for name in found if _is_picture(name)]
        if not names:
            raise FolderError(f"{self.url}: expected a folder with pictures in it, found none; check the path")
        return {name: found[name] for name in sorted(names, key=lambda name: [*map(natural_key, name.split("/"))])}

    def sizes(self) -> dict[str, int]:
        """See `Folder`."""
        try:
            return self._list(None)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise FolderError(
                f"{self.url}: expected a folder that can be read, got {_said(error)}; check it"
            ) from error

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        try:
            size = self._files.size(f"{self._root}/{name}") or 0
            content = self._files.cat_file(f"{self._root}/{name}") if size <= MAX_FILE_BYTES else b""
        except Exception as error:
            raise ImageError(f"{self.url}/{name}: expected a readable file, got {_said(error)}; check it") from error
        if size > MAX_FILE_BYTES:
            got = f"got {size / 1e6:.0f} MB; save the picture again, compressed"
            raise ImageError(f"{self.url}/{name}: expected a file of at most {MAX_FILE_BYTES / 1e6:.0f} MB, {got}")
        return content

    def peek(self, name: str) -> bytes | None:
        """See `Folder`."""
        try:
            return self._files.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise FolderError(f"{self.url}/{name}: expected a readable file, got {_said(error)}; check it") from error

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        path = f"{self._root}/{name}"
        parent, _, last = path.rpartition("/")
        part = f"{parent}/.{MARK}{os.urandom(8).hex()}.part" if self._renames else path
        try:
            self._files.makedirs(parent, exist_ok=True)
            self._files.pipe_file(part, data)
            if self._renames:
                self._files.mv(part, path)
        except Exception as error:
            raise DiskError(
                f"{self.url}/{name}: expected to write {last}, could not ({_said(error)}); check it"
            ) from error

    def remove(self, name: str) -> None:
        """See `Folder`."""
        try:
            self._files.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            pass
        except Exception as error:
            raise DiskError(
                f"{self.url}/{name}: expected to remove it, could not ({_said(error)}); check it"
            ) from error

    def _list(self, depth: int | None) -> dict[str, int]:
        self._files.invalidate_cache()
        found = self._files.find(self._root, maxdepth=depth, detail=True)
        start = len(self._root) + 1 if self._root else 0
        return {path[start:]: int(info.get("size") or 0) for path, info in found.items()}


def _is_picture(name: str) -> bool:
    if not name.lower().endswith(INPUT_SUFFIXES) or any(re.fullmatch(r"\.[^.].*", part) for part in name.split("/")):
        return False
    return is_portable(name)


def _hint(error: ImportError) -> str:
    text = str(error).strip().rstrip(".")
    return f"{text[:1].lower()}{text[1:]}" if text.lower().startswith("install") else f"install it ({text})"


def _said(error: Exception) -> str:
    """Return one line of what a service said."""
    return " ".join(str(error).split())[:300] or type(error).__name__
