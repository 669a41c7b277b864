"""One pass over a folder of pictures, one picture at a time: what is left, what is finished and what failed."""

import errno
import os
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import DiskError, FolderError, ImageError
from .folder_names import Saver, free_name, list_pictures, target_names
from .folder_places import is_inside
from .folder_report import REPORT_NAME, Report
from .folder_results import Results, is_gone, is_lasting
from .images import Picture, load_image, save_image

Outcome = Literal["success", "failed", "interrupted", "unknown"]


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What to go through and where to.

    Attributes:
        folder: of the pictures; a real path.
        output: of the results; a real path, made if missing.
        source: what the user calls the folder.
        pattern: globs, see `list_pictures`.
        subfolders: whether to look below as well.
        overwrite: whether results that exist are made again.
        savers: what is saved of each picture; without any, the report alone says which ones are done.
        readable: folders that links to pictures may lead into, besides the folder itself.
    """

    folder: Path
    output: Path
    source: str
    pattern: str = "*"
    subfolders: bool = False
    overwrite: bool = False
    savers: tuple[Saver, ...] = ()
    readable: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise FolderError(f"{self.source}: expected a folder of pictures, found none there; check its name")
        apart = self.folder != self.output
        if self.subfolders and apart:
            apart = not is_inside(self.output, [self.folder]) and not is_inside(self.folder, [self.output])
        if not apart:
            raise FolderError(
                f"{self.source}: expected an output folder apart from the input's, where results would count as "
                "inputs or replace them; choose another one"
            )


@dataclass(kw_only=True, eq=False)
class Work:
    """A picture that is being worked on.

    Attributes:
        name: its path relative to the folder.
        targets: paths of the results relative to the output folder, by saver.
        began: on the monotonic clock, in seconds.
        files: paths of what was saved so far, by saver.
        icc_profile: colour profile of the file that was read; results carry it too.
    """

    name: str
    targets: dict[str, str]
    began: float
    files: dict[str, list[str]] = field(default_factory=dict)
    icc_profile: bytes | None = None


class Batch:
    """Go through a folder once.

    Args:
        settings: what to go through.

    Raises:
        FolderError: there are no pictures, two results would share a name, or one would replace another picture's.
        DiskError: the output folder cannot be written.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self.settings = settings
        names = list_pictures(settings.folder, settings.pattern, settings.subfolders)
        self.targets = target_names(names, settings.savers)
        self.positions = {name: number for number, name in enumerate(names, start=1)}
        self.report = Report(settings.output, settings.source)
        self.results = Results(settings.output, self.targets, self.report)
        self.results.check_owners(names)
        self.finished = set() if settings.overwrite else self.results.finished()
        self.failed: dict[str, str] = {}
        self.left = deque(name for name in names if name not in self.finished)
        self.stopped = ""
        if self.left:
            self.report.add("started", pictures=len(names), finished=len(self.finished))

    def pick(self) -> Work | None:
        """Take the next picture that is not finished, and note it as begun; None when there is none.

        Raises:
            FolderError: results of another folder or picture appeared under its names.
        """
        self.report.catch_up()
        while self.left:
            name = self.left[0]
            self.results.check_owners([name])
            if not self.settings.overwrite and self.results.complete(name):
                self.finished.add(self.left.popleft())
                continue
            self.report.add("begun", name)
            self.left.popleft()  # only now: a report that cannot be written must not cost a picture
            targets = {saver.key: target for saver, target in zip(self.settings.savers, self.targets[name])}
            return Work(name=name, targets=targets, began=time.monotonic())
        return None

    def load(self, work: Work) -> Picture:
        """Read a picture.

        Raises:
            ImageError: it vanished, cannot be read, or is a link that leads outside.
            FolderError: the whole folder vanished; the pass stops.
        """
        try:
            return self._load(work)
        except (ImageError, OSError) as error:
            if is_gone(self.settings.folder):
                self.stopped = (
                    f"{self.settings.source}: expected the folder of pictures to stay, but it is gone or empty; bring "
                    "its drive back and queue again"
                )
                raise FolderError(self.stopped) from error
            if isinstance(error, ImageError):
                raise
            reason = error.strerror or str(error)
            raise ImageError(f"{work.name}: expected a readable file, got {reason}; check its drive") from error

    def _load(self, work: Work) -> Picture:
        path = self.settings.folder / work.name
        if not is_inside(Path(os.path.realpath(path)), (self.settings.folder, *self.settings.readable)):
            raise ImageError(
                f"{work.name}: expected a file in the folder, got a link that leads outside; copy it there"
            )
        if path.exists() and not path.is_file():
            raise ImageError(f"{work.name}: expected a plain file, got another kind; remove it")
        picture = load_image(path)
        work.icc_profile = picture.icc_profile
        return picture

    def save(self, work: Work, key: str, pictures: list[Picture], options: dict[str, Any]) -> list[str]:
        """Write a saver's results; the first has the picture's name, further ones get _2, _3, ...

        Args:
            work: whose results.
            key: of the saver.
            pictures: at least one.
            options: of Pillow's encoder.

        Returns:
            Paths of the files relative to the output folder; none when a result was there and is kept.

        Raises:
            FolderError: a name is taken by an input or another picture's result, or leads outside.
            ImageError: there are no pictures, or the format cannot hold one.
            DiskError: a file could not be written; if no other could be either, the pass stops.
        """
        if not pictures:
            raise ImageError(
                f"{work.name}: expected at least one result, got an empty batch; check the nodes before EAM Save Folder"
            )
        with ExitStack() as stack:
            try:
                stack.enter_context(self.report.held())
            except DiskError as error:
                self._stop_if_lasting(error.__cause__, str(error))
                raise
            return self._save(work, key, pictures, options)

    def _save(self, work: Work, key: str, pictures: list[Picture], options: dict[str, Any]) -> list[str]:
        """Look what is there, write and note it; two programs on one folder do so in turn."""
        main = work.targets[key]
        self.report.catch_up()
        self.results.check_owners([work.name])
        before = work.files.get(key, [])
        if not before and not self.settings.overwrite and os.path.lexists(self.settings.output / main):
            self._saved(work, key, [])
            return []
        names = [] if before else [main]
        if len(pictures) > len(names):
            taken = self.results.taken(work.name, main)
            taken |= {name.casefold() for files in work.files.values() for name in files}
            while len(names) < len(pictures):
                names.append(free_name(main, taken, first=len(before) + len(names) + 1))
                taken.add(names[-1].casefold())
        # The first comes last: once it is there, all are.
        for name, picture in reversed(list(zip(names, pictures))):
            self._write(work, name, picture, options)
        self._saved(work, key, names)
        return names

    def resume(self) -> None:
        """Go on after a stop; what failed is tried again."""
        self.left = deque(sorted({*self.left, *self.failed}, key=self.positions.__getitem__))
        self.failed, self.stopped = {}, ""
        self.report.add("started", pictures=len(self.positions), finished=len(self.finished))

    def settle(self, work: Work, outcome: Outcome, message: str = "") -> None:
        """Note how a picture's run ended, unless its results are all there.

        Args:
            work: the picture.
            outcome: of the run; "unknown" if nobody can tell any more.
            message: what went wrong.
        """
        if work.name in self.finished:
            return
        if outcome == "interrupted":
            self.left.appendleft(work.name)
            self.report.add("interrupted", work.name)
        elif outcome == "success" and not work.targets:
            self._done(work)
        else:
            endings = {"success": "its run ended without saving it", "unknown": "how its run ended is not known"}
            self.fail(work, message or endings.get(outcome, "its run failed"))

    def fail(self, work: Work, message: str) -> None:
        """Note a picture as failed; the pass goes on without it."""
        self.failed[work.name] = message
        self.report.add("failed", work.name, seconds=_seconds(work), error=message)

    def end(self, state: Literal["finished", "stopped"]) -> None:
        """Note the end of the pass, or its stop."""
        self.report.add(state, pictures=len(self.positions), finished=len(self.finished), failed=len(self.failed))

    def progress(self) -> str:
        """Say how far the pass is, such as "37 of 500, 2 failed"."""
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{len(self.finished)} of {len(self.positions)}{failed}"

    def summary(self) -> str:
        """Say in one sentence how the pass ended."""
        hint = f"; {REPORT_NAME} in the output folder says why" if self.failed else ""
        return f"Finished: {self.progress()}{hint}."

    def _write(self, work: Work, name: str, picture: Picture, options: dict[str, Any]) -> None:
        path = self.settings.output / name
        try:
            # Made anew, it would lie on another drive than the one that is gone.
            if not self.settings.output.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            path.parent.mkdir(parents=True, exist_ok=True)
            if not is_inside(Path(os.path.realpath(path.parent)), [self.settings.output]):
                raise FolderError(f"{name}: expected a place in the output folder, got a link that leads outside")
            source = self.settings.folder / work.name
            if path.exists() and source.exists() and path.samefile(source):
                raise FolderError(f"{name}: expected a file other than the input; choose another output folder")
            save_image(picture, path, options)
        except OSError as error:
            self._stop_if_lasting(error, f"{name}: could not be written ({error.strerror})")
            raise DiskError(f"{name}: expected to write it, could not ({error.strerror}); check the folder") from error
        except DiskError as error:
            self._stop_if_lasting(error.__cause__, str(error))
            raise

    def _stop_if_lasting(self, cause: BaseException | None, message: str) -> None:
        if is_lasting(cause, self.settings.output):
            self.stopped = message

    def _saved(self, work: Work, key: str, files: list[str]) -> None:
        work.files[key] = [*work.files.get(key, []), *files]
        if work.name not in self.finished and set(work.files) == set(work.targets):
            self._done(work)
        else:
            self.report.add("saved", work.name, files=files)

    def _done(self, work: Work) -> None:
        self.finished.add(work.name)
        self.failed.pop(work.name, None)
        files = [name for names in work.files.values() for name in names]
        self.report.add("done", work.name, seconds=_seconds(work), files=files)


def _seconds(work: Work) -> float:
    return round(time.monotonic() - work.began, 3)
