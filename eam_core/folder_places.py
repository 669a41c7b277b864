"""Which folders a graph may read and write: those inside a root, and those that the server's owner allows besides."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from .errors import FolderError

ALLOWED_VARIABLE = "EAM_FOLDERS"

_DRIVE = re.compile(r"[A-Za-z]:")
# Besides control characters, marks that turn what is read, ends of lines and halves of characters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_NAME, _LONGEST_PATH = 255, 2000  # bytes; a path may become half as long again by the root's own
# What Windows cannot have in a name, and names that it takes for devices, with any ending.
_RESERVED_MARKS = re.compile(r'[<>:"|?*]')
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
_DEVICES |= {f"{kind}{number}" for kind in ("COM", "LPT") for number in "123456789\u00b9\u00b2\u00b3"}


@dataclass(frozen=True, kw_only=True)
class Root:
    """A folder whose inside is open to every graph.

    Attributes:
        path: the folder.
        name: what to call it, such as "ComfyUI's input folder".
        widget: which setting names folders in it, for messages.
    """

    path: Path
    name: str
    widget: str


def allowed_folders(value: str | None) -> tuple[Path, ...]:
    """Read the list of further folders that the server's owner allows.

    Args:
        value: absolute paths, separated as PATH is on this system; None for none.

    Raises:
        FolderError: an entry is no absolute path.
    """
    entries = [entry.strip() for entry in (value or "").split(os.pathsep)]
    for entry in filter(None, entries):
        if not Path(entry).is_absolute():
            raise FolderError(
                f"{ALLOWED_VARIABLE}: expected absolute paths separated by {os.pathsep!r}, got {entry!r}; correct it"
            )
    return tuple(Path(os.path.realpath(entry)) for entry in entries if entry)


def resolve_folder(text: str, root: Root, allowed: Iterable[Path] = (), windows: bool = os.name == "nt") -> Path:
    """Turn what a user wrote into a folder that may be used; it need not exist.

    Args:
        text: relative to the root, with / or \\ between names; or absolute, inside an allowed folder.
        root: where relative paths begin.
        allowed: further folders, see `allowed_folders`.
        windows: whether a path that begins with two slashes names another computer.

    Returns:
        The folder's real path, links followed.

    Raises:
        FolderError: it lies outside, directly or through a link, or its name cannot be used.
    """
    if _CONTROL.search(text):
        raise FolderError(f"{root.widget}: expected one line of text, got {text!r}; write the folder's name again")
    path = text.strip().replace("\\", "/")
    if len(path.encode()) > _LONGEST_PATH:
        raise FolderError(f"{root.widget}: expected a path of at most {_LONGEST_PATH} bytes, got more; shorten it")
    drive = _DRIVE.match(path)
    outside = FolderError(
        f"{root.widget}: expected a folder inside {root.name}, got {text!r}; write it relative to that folder, or "
        f"let the server's owner allow it in {ALLOWED_VARIABLE}"
    )
    # On other systems a drive's letter would pass for a relative name.
    if drive and not windows:
        raise outside
    parts = [part for part in (path[drive.end() :] if drive else path).split("/") if part not in ("", ".")]
    # Even a look at a share would send the server's credentials to a computer of the user's choice.
    if ".." in parts or (windows and path.startswith("//") and not _is_in_share(path, (root.path, *allowed))):
        raise outside
    for part in parts:
        check_name(part, root.widget)
    real = Path(os.path.realpath(path if drive or path.startswith("/") else root.path / path))
    if not is_inside(real, (Path(os.path.realpath(root.path)), *allowed)):
        raise outside
    return real


def _is_in_share(path: str, folders: Iterable[Path]) -> bool:
    """Tell from the names alone whether a path on another computer is one of the folders or below one."""
    return any(PureWindowsPath(path).is_relative_to(str(folder)) for folder in folders)


def check_name(name: str, widget: str, windows: bool = os.name == "nt") -> None:
    """Refuse a name that is a device on some system, longer than any holds, or that this one cannot hold.

    Args:
        name: of a file or folder, without its path.
        widget: which setting it comes from, for the message.
        windows: whether Windows' rules on single characters hold.

    Raises:
        FolderError: the name cannot be used.
    """
    if len(name.encode(errors="surrogatepass")) > _LONGEST_NAME:
        raise FolderError(f"{widget}: expected names of at most {_LONGEST_NAME} bytes, got {name!r}; shorten it")
    device = name.split(".")[0].strip().upper() in _DEVICES
    if device or (windows and (_RESERVED_MARKS.search(name) or name[-1:] in (".", " "))):
        raise FolderError(f"{widget}: expected a name that Windows can hold too, got {name!r}; choose another one")


def check_suffix(suffix: str) -> None:
    """Refuse an addition to names that would lead elsewhere or that some system cannot hold.

    Raises:
        FolderError: it has a separator, a control or reserved character, or is longer than 100 characters.
    """
    if len(suffix) > 100 or _CONTROL.search(suffix) or _RESERVED_MARKS.search(suffix) or set("/\\") & set(suffix):
        raise FolderError(
            f"suffix: expected at most 100 characters that names may have, such as _x4, got {suffix[:120]!r}; change it"
        )


def is_inside(path: Path, folders: Iterable[Path]) -> bool:
    """Tell whether a real path is one of the real folders or below one."""
    path = Path(os.path.normcase(path))
    return any(path.is_relative_to(os.path.normcase(folder)) for folder in folders)
