"""Which pictures a folder holds, and under which names their results are saved."""

import fnmatch
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from posixpath import splitext
from typing import Literal

from .errors import FolderError, printable
from .images import INPUT_SUFFIXES, OUTPUT_SUFFIXES, natural_key

Format = Literal["as input", "png", "jpg", "webp"]

_LONGEST_PATTERN = 1000  # characters; the time to read globs grows with the square of theirs


@dataclass(frozen=True, kw_only=True)
class Saver:
    """How one node names what it saves.

    Attributes:
        key: tells savers apart; in ComfyUI the node's id.
        format: of the file; "as input" makes PNG of formats that are only read.
        suffix: added to the name before its ending.
    """

    key: str
    format: Format = "as input"
    suffix: str = ""


def list_pictures(folder: Path, pattern: str = "*", subfolders: bool = False) -> list[str]:
    """List a folder's pictures by their endings, in natural order; none is opened.

    Hidden files and folders are left out, and links to folders are not followed.

    Args:
        folder: an existing folder.
        pattern: globs separated by ;, such as "*.jpg;*.png", case ignored; one with a / is held against the path.
        subfolders: whether to look below as well.

    Returns:
        Paths relative to the folder, with / between names.

    Raises:
        FolderError: the folder cannot be read, or holds no such picture; or the globs are too long.
    """
    matches = _matcher(pattern)
    found, pictures = [], 0
    for name in _walk(folder, subfolders):
        if name.lower().endswith(INPUT_SUFFIXES):
            pictures += 1
            if matches(name):
                found.append(name)
    if not found:
        got = f"found none among {pictures}; change the pattern" if pictures else "found none; check the path"
        raise FolderError(f"{folder.name}: expected a folder with pictures that match {pattern or '*'!r}, {got}")
    return sorted(found, key=lambda name: [natural_key(part) for part in name.split("/")])


def _walk(folder: Path, subfolders: bool) -> Iterable[str]:
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if subfolders:
                            waiting.append(f"{prefix}{entry.name}/")
                    elif _is_file(entry):
                        yield prefix + entry.name
        except OSError as error:
            problem = f"{prefix or folder.name}: expected a folder that can be read ({error.strerror}); check it"
            if not prefix:
                raise FolderError(problem) from error
            warnings.warn(printable(f"{problem}; it is left out"), stacklevel=2)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads nowhere readable
        return False


def _matcher(pattern: str) -> Callable[[str], bool]:
    if len(pattern) > _LONGEST_PATTERN:
        got = f"got {len(pattern)}; give the first ones or *"
        raise FolderError(f"pattern: expected at most {_LONGEST_PATTERN} characters, {got}")
    globs = [glob.strip().replace("\\", "/") for glob in pattern.casefold().split(";")]
    try:
        rules = [(re.compile(fnmatch.translate(glob)), "/" in glob) for glob in globs if glob]
    except re.error as error:
        raise FolderError(f"pattern: expected globs such as *.jpg;*.png, got {pattern!r}; correct it") from error

    def matches(name: str) -> bool:
        path = name.casefold()
        return any(rule.match(path if whole else path.rpartition("/")[2]) for rule, whole in rules)

    return matches if rules else lambda name: True


def target_names(pictures: Sequence[str], savers: Sequence[Saver]) -> dict[str, tuple[str, ...]]:
    """Give every result a name of its own: the picture's, unless results of several pictures would share it.

    Where a.jpg and a.tif both become a.png, they are saved as a_jpg.png and a_tif.png; a picture that was a.png
    already keeps the name. Names that differ in case alone count as one, as they do on Windows and macOS.

    Args:
        pictures: paths relative to the folder, as `list_pictures` gives them.
        savers: what is saved of each picture.

    Returns:
        {picture: one path for each saver}, relative to the output folder.

    Raises:
        FolderError: two savers would write the same file.
    """
    wanted = {(picture, saver.key): _wanted(picture, saver) for picture in pictures for saver in savers}
    claims = defaultdict(list)
    for claim, name in wanted.items():
        claims[name.casefold()].append(claim)
    taken = set(claims)
    for name, claimants in claims.items():
        if len({picture for picture, _ in claimants}) < len(claimants):
            raise FolderError(
                f"{wanted[claimants[0]]}: expected one EAM Save Folder to write this file, got two; give one a suffix"
            )
        if len(claimants) == 1:
            continue
        owner = _owner(name, [picture for picture, _ in claimants])
        for picture, key in (claim for claim in claimants if claim[0] != owner):
            stem, ending = splitext(wanted[picture, key])
            wanted[picture, key] = free_name(f"{stem}_{splitext(picture)[1][1:]}{ending}", taken)
            taken.add(wanted[picture, key].casefold())
    return {picture: tuple(wanted[picture, saver.key] for saver in savers) for picture in pictures}


def _owner(name: str, pictures: list[str]) -> str | None:
    """Choose the picture that keeps a result's name: the one of that very name, else one of the same format."""
    endings = [picture for picture in pictures if splitext(picture)[1].casefold() == splitext(name)[1]]
    return next((picture for picture in pictures if picture.casefold() == name), endings[0] if endings else None)


def free_name(name: str, taken: set[str], first: int | None = None) -> str:
    """Return the name, or the first of name_2, name_3, ... that is not taken.

    Args:
        name: path with / between names.
        taken: names in lower case (casefold) that are in use.
        first: number to begin with; None tries the name itself before name_2.
    """
    if first is None and name.casefold() not in taken:
        return name
    stem, ending = splitext(name)
    numbered = (f"{stem}_{number}{ending}" for number in count(first or 2))
    return next(candidate for candidate in numbered if candidate.casefold() not in taken)


def _wanted(picture: str, saver: Saver) -> str:
    stem, ending = splitext(picture)
    if saver.format != "as input":
        ending = f".{saver.format}"
    elif ending.lower() not in OUTPUT_SUFFIXES:
        ending = ".png"
    return f"{stem}{saver.suffix}{ending}"
