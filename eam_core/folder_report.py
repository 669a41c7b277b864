"""The list of what became of each picture of a folder: lines of JSON, kept beside the results."""

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import DiskError, FolderError

REPORT_NAME = "eam_folder.jsonl"


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
        # A link would lead the lines elsewhere; a pipe would wait for a reader for ever.
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise FolderError(f"{REPORT_NAME}: expected a plain file in the output folder, got another kind; remove it")
        try:
            output.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    # A server that was killed may have left half a line.
                    if file.read(1) != b"\n":
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
        try:
            with self.path.open("a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise DiskError(
                f"{REPORT_NAME}: expected to add a line to the report, could not ({error.strerror}); free some space "
                "or choose another output folder"
            ) from error

    def done(self) -> set[str]:
        """Return the pictures of this source that were done; lines that are no JSON are passed over."""
        found = set()
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict) and line.get("folder") == self.source and line.get("state") == "done":
                    found.add(str(line.get("name")))
        return found
