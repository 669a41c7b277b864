"""What is in an output folder already: which pictures' results are there, whose a file is, which names are free."""

import errno
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from .errors import FolderError
from .folder_report import Report, source_name

# Nothing that follows could be saved either.
_LASTING = (errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))


class Results:
    """Look at the results that a pass finds.

    Args:
        output: their folder.
        targets: {picture: paths of its results relative to the output folder}.
        report: of the output folder; the caller keeps it up to date.
    """

    def __init__(self, output: Path, targets: Mapping[str, tuple[str, ...]], report: Report) -> None:
        self.output = output
        self.targets = targets
        self.names = frozenset(name.casefold() for names in targets.values() for name in names)
        self._report = report
        self._source = source_name(report.source)
        report.catch_up()

    def finished(self) -> set[str]:
        """Return the pictures whose results are all there; without targets, those that the report calls done."""
        if not self.names:
            return self._report.done() & set(self.targets)
        # One listing per folder instead of one question per file.
        present: dict[str, set[str]] = {}
        for names in self.targets.values():
            for name in names:
                parent = name.rpartition("/")[0]
                if parent not in present:
                    present[parent] = _names_in(self.output / parent)
        return {
            picture
            for picture, names in self.targets.items()
            if all(name.rpartition("/")[2] in present[name.rpartition("/")[0]] for name in names)
        }

    def complete(self, picture: str) -> bool:
        """Tell whether a picture's results appeared since the pass began, such as those of another run."""
        targets = self.targets[picture]
        return bool(targets) and all(os.path.lexists(self.output / target) for target in targets)

    def check_owners(self, pictures: Iterable[str]) -> None:
        """Refuse pictures whose names hold results of another folder or picture, as far as the report knows.

        Raises:
            FolderError: one of these results is still there.
        """
        for picture in pictures:
            for target in self.targets[picture]:
                owner = self._report.owner(target)
                if owner in (None, (self._source, picture)) or not os.path.lexists(self.output / target):
                    continue
                raise FolderError(
                    f"{target}: expected a name for the result of {picture} alone, but there the output folder holds "
                    f"that of {owner[1]} of folder {owner[0]!r}; choose another output_folder"
                )

    def taken(self, picture: str, main: str) -> set[str]:
        """List names, in lower case, that a picture's further results cannot have.

        Args:
            picture: whose own earlier results do not count.
            main: path of its first result; the others go beside it.
        """
        folder, slash, _ = main.rpartition("/")
        present = (f"{folder}{slash}{name}" for name in _names_in(self.output / folder))
        own = (self._source, picture)
        return set(self.names) | {name.casefold() for name in present if self._report.owner(name) != own}


def is_lasting(error: BaseException | None, folder: Path) -> bool:
    """Tell whether what kept a file from being written keeps all others from it too."""
    if not isinstance(error, OSError):
        return False
    # One file may be locked, or its place on the disk bad; a drive or a permission that is gone holds for all.
    return error.errno in _LASTING or not can_write(folder)


def is_gone(folder: Path) -> bool:
    """Tell whether a folder vanished, or all that was in it, as when a drive is taken off its place."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def can_write(folder: Path) -> bool:
    """Tell whether a new file can be made in a folder."""
    probe = folder / f".{secrets.token_hex(8)}.part"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError:
        return False
    return True


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:  # not made yet
        return set()
