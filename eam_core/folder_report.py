"""The list of what became of each picture of a folder: lines of JSON, kept beside the results."""

import errno
import json
import os
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import DiskError, FolderError
from .file_lock import held

REPORT_NAME = "eam_folder.jsonl"

Owner = tuple[str, str]
"""Whose result a file is: what the folder is called, and the picture's path in it."""


class Report:
    """Append lines to an output folder's report.

    Args:
        output: folder of the results; made if missing.
        source: what the folder of the pictures is called; each line carries it, as several may share an output.

    Raises:
        DiskError: the folder cannot be made or written.
        FolderError: the report's name is taken by something that is no plain file.
    """

    def __init__(self, output: Path, source: str) -> None:
        self.path = output / REPORT_NAME
        self.source = source
        self._done: set[str] = set()
        self._owners: dict[str, Owner] = {}
        self._read = 0
        try:
            # A link would lead the lines elsewhere; a pipe would wait for a reader for ever.
            if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
                raise FolderError(
                    f"{REPORT_NAME}: expected a plain file in the output folder, got another kind; remove it"
                )
            output.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if _ends_within_a_line(file):
                    file.write(b"\n")
        except OSError as error:
            raise DiskError(
                f"{output.name}: expected an output folder that can be written ({error.strerror}); make it writable or "
                "choose another one"
            ) from error

    def add(self, state: str, name: str = "", **fields: Any) -> None:
        """Append one line.

        Args:
            state: begun, saved, done, failed, interrupted; started, stopped or finished of the whole folder.
            name: the picture's path relative to its folder; empty for the whole folder.
            fields: what else to write, as JSON.

        Raises:
            DiskError: it could not be written.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "folder": self.source, "state": state, **({"name": name} if name else {}), **fields}
        data = json.dumps(line).encode("ascii") + b"\n"
        try:
            # In one piece, so that two programs' lines never mix.
            with self.path.open("ab+", buffering=0) as file:
                if _ends_within_a_line(file):
                    data = b"\n" + data
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise DiskError(
                f"{REPORT_NAME}: expected to add a line to the report, could not ({error.strerror}); free some space "
                "or choose another output folder"
            ) from error

    def held(self) -> AbstractContextManager[bool]:
        """Keep others from adding results to the folder for a moment, so that none takes a name twice.

        On a drive without locks, two programs that write in the same moment may.
        """
        return held(self.path)

    def done(self) -> set[str]:
        """Return the pictures of this source that were done, as of the last `catch_up`."""
        return self._done

    def owner(self, file: str) -> Owner | None:
        """Return whose result a file was when it was last written, as of the last `catch_up`; None if nobody said.

        Args:
            file: path relative to the output folder; case is ignored, as Windows and macOS do.
        """
        return self._owners.get(file.casefold())

    def catch_up(self) -> None:
        """Read the lines that were added since the last time; what is no JSON of ours is passed over."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:  # emptied by hand
                    self._done, self._owners, self._read = set(), {}, 0
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:  # removed by hand
            self._done, self._owners, self._read = set(), {}, 0
            return
        except OSError as error:
            raise DiskError(
                f"{REPORT_NAME}: expected a report that can be read ({error.strerror}); make it readable or choose "
                "another output folder"
            ) from error
        # Another run may be in the middle of its line.
        whole = data.rfind(b"\n") + 1
        self._read += whole
        for text in data[:whole].splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("name"), str):
                self._note(line)

    def _note(self, line: dict[str, Any]) -> None:
        source, name, files = source_name(str(line.get("folder"))), line["name"], line.get("files")
        if line.get("state") == "done" and source == source_name(self.source):
            self._done.add(name)
        if isinstance(files, list):
            self._owners.update((str(file).casefold(), (source, name)) for file in files)


def _ends_within_a_line(file: Any) -> bool:
    """Tell whether a killed program or a full disk left half a line."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def source_name(text: str) -> str:
    """Write a folder's name in one way: "a", "a/" and ".\\a" are the same folder."""
    path = text.strip().replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts) or "input"
