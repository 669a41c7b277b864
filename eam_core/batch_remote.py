"""Folders of a batch by path or URL: those on a disk, and through fsspec all others."""

import os
import re
from pathlib import Path
from typing import Any

from .batch_store import MARK, Folder, LocalFolder, is_portable
from .errors import DiskError, FolderError, ImageError
from .folder_batch import BatchSettings
from .images import INPUT_SUFFIXES, natural_key
from .picture_files import MAX_FILE_BYTES

# Where fsspec's rename puts one file in place of another at once, as on a disk. On others it refuses, does nothing or
# copies; there, as in object stores, a file is put directly.
_RENAMES = ("sftp",)
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^/\s]*@")
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")  # what stands before their @ is no user
_QUERY = re.compile(r"\?[^\s?'\"]*=[^\s'\"]*")
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
    name = shown(text)
    try:
        import fsspec
    except ImportError as error:
        raise FolderError(f"expected the package fsspec, which opens {name!r}, found none; install it") from error
    try:
        files, root = fsspec.core.url_to_fs(text)
        if _protocol(files) in ("file", "local"):
            return LocalFolder(Path(root))
        return RemoteFolder(files, root, text)
    except ImportError as error:
        raise FolderError(f"expected a package that opens {name!r}, found none; {_hint(error)}") from error
    except ValueError as error:
        raise FolderError(
            f"expected a path or a URL that fsspec knows, such as s3://bucket/folder, got {name!r}; correct it"
        ) from error
    except Exception as error:  # services raise errors of their own
        raise FolderError(
            f"expected to open {name!r}, could not ({_said(error)}); check its name and your rights"
        ) from error


def shown(text: str) -> str:
    """Return a URL, or a sentence with some, without what may be secret: users, passwords and queries."""
    user = _USER.sub(lambda found: found[0] if found[1].lower() in _CONTAINERS else f"{found[1]}://", text)
    return _QUERY.sub("", user)


def check_apart(source: Folder, output: Folder, subfolders: bool) -> None:
    """Refuse an output folder where results would count as inputs or replace them, however its name is written.

    Raises:
        FolderError: it is one.
    """
    if source.path and output.path:
        BatchSettings(folder=source.path, output=output.path, source=source.url, subfolders=subfolders)
        return
    (one, pictures), (other, results) = source.place, output.place
    below = subfolders and (_is_below(results, pictures) or _is_below(pictures, results))
    if one == other and (pictures == results or below):
        raise FolderError(
            f"{source.url}: expected an output folder apart from the input's, where results would count as inputs or "
            "replace them; choose another one"
        )


class RemoteFolder:
    """A folder that fsspec reaches.

    Args:
        files: an fsspec file system.
        root: of the folder in it.
        address: what the user calls it.
    """

    def __init__(self, files: Any, root: str, address: str) -> None:
        self._files, self._root, self.address = files, root.rstrip("/"), address
        self.url = re.sub(r"(?<![:/])/+$", "", shown(address))
        self.place = _place(files, root)
        self.path: Path | None = None
        self._renames = _protocol(files) in _RENAMES

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


def _protocol(files: Any) -> str:
    return files.protocol if isinstance(files.protocol, str) else files.protocol[0]


def _place(files: Any, root: str) -> tuple[str, str]:
    """Return what tells one folder from another: its service and its path, looked for behind caches and the like."""
    from fsspec import AbstractFileSystem

    while isinstance(inner := getattr(files, "fs", None), AbstractFileSystem):
        if _protocol(files) == "dir":
            root = f"{getattr(files, 'path', '')}/{root}"
        files = inner
    protocol = _protocol(files)
    if protocol in ("file", "local"):
        return "file", Path(os.path.realpath(root)).as_posix()
    return f"{protocol} {getattr(files, 'host', None) or ''}", re.sub("/+", "/", shown(root)).strip("/")


def _is_below(path: str, folder: str) -> bool:
    return not folder or f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _is_picture(name: str) -> bool:
    if not name.lower().endswith(INPUT_SUFFIXES) or any(re.fullmatch(r"\.[^.].*", part) for part in name.split("/")):
        return False
    return is_portable(name)


def _hint(error: ImportError) -> str:
    text = str(error).strip().rstrip(".")
    return f"{text[:1].lower()}{text[1:]}" if text.lower().startswith("install") else f"install it ({text})"


def _said(error: Exception) -> str:
    """Return one line of what a service said."""
    return shown(" ".join(str(error).split()))[:300] or type(error).__name__
