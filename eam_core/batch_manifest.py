"""What a batch has done: lines of JSON beside its results, of which the last one of a picture counts."""

import hashlib
import json
import re
from datetime import datetime, timezone
from typing import Any

from .batch_store import Folder, LocalFolder, is_plain_name, refuse_links
from .errors import FolderError
from .folder_names import Saver, free_name, target_names

MANIFEST = "eam_batch.jsonl"
# Where nothing can be appended, a file holds so many lines and is written anew with each; then the next one begins.
_SEGMENT_LINES = 200
_SEGMENT = re.compile(r"eam_batch-\d{6}\.jsonl")

Record = dict[str, Any]


class Manifest:
    """The lines of one output folder.

    Attributes:
        records: {picture: its last line that is writing, done or failed}.
        started: the last line that says which settings hold; None before the first.

    Args:
        folder: of the results.
        names: of the files in it.

    Raises:
        FolderError: it cannot be read, or is no plain file.
    """

    def __init__(self, folder: Folder, names: list[str]) -> None:
        self._folder = folder
        self.records: dict[str, Record] = {}
        self.started: Record | None = None
        self._waiting: list[str] = []
        self._torn = self._pressing = False
        refuse_links(folder, MANIFEST)
        segments = sorted(name for name in names if _SEGMENT.fullmatch(name))
        for name in [MANIFEST] * (MANIFEST in names) + segments:
            data = folder.peek(name) or b""
            self._load(data)
            # A driver that was killed may have left half a line.
            self._torn = bool(data) and not data.endswith(b"\n")
        self._number = 1 + max((int(name[-12:-6]) for name in segments), default=0)
        self._lines: list[str] = []

    def start(self, settings: dict[str, Any], anew: bool) -> None:
        """Note the settings that hold from here on.

        Args:
            settings: as JSON.
            anew: whether all pictures are to be done, whatever was done before, and files in the way replaced.
        """
        if anew or not self.started:
            self.records.clear()
        replaces = anew or self.replaces
        self.started = self.add("started", settings=settings, first=anew or not self.started, anew=replaces)
        self.flush()

    @property
    def replaces(self) -> bool:
        """Whether this batch may replace files that it did not write."""
        return bool(self.started and self.started["anew"])

    def settings_name(self) -> str:
        """Return a short name of the settings that hold, by which a picture's line refers to them."""
        settings = self.started and self.started["settings"]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def add(self, state: str, name: str = "", **fields: Any) -> Record:
        """Add a line, which is on the disk after the next `flush`.

        Args:
            state: begun, writing, done or failed of a picture; started, stopped or finished of the batch.
            name: of the picture; empty for the whole batch.
            fields: what else to write, as JSON.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        record = {"time": now, "state": state, **({"name": name} if name else {}), **fields}
        self._waiting.append(json.dumps(record) + "\n")
        if state != "begun":  # of which nobody's work depends
            self._pressing = True
            if name:
                self.records[name] = record
        return record

    def flush(self) -> None:
        """Wait until the disk or store has all lines; those that say no more than what was begun wait for others.

        Raises:
            EAMError: they could not be written.
        """
        if not self._pressing:
            return
        lines, self._waiting, self._pressing = self._waiting, [], False
        if isinstance(self._folder, LocalFolder):
            text = "\n" * self._torn + "".join(lines)
            self._folder.append(MANIFEST, text.encode("ascii"))
            self._torn = False
            return
        self._lines += lines
        self._folder.write(f"eam_batch-{self._number:06d}.jsonl", "".join(self._lines).encode("ascii"))
        if len(self._lines) >= _SEGMENT_LINES:
            self._number, self._lines = self._number + 1, []

    def _load(self, data: bytes) -> None:
        for text in data.splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):  # half a line, or not ours
                continue
            if not isinstance(line, dict):
                continue
            state, name = line.get("state"), line.get("name")
            if state == "started" and isinstance(line.get("settings"), dict):
                self.started = {"anew": False, **line}
                if line.get("first"):
                    self.records.clear()
            elif state in ("writing", "done", "failed") and isinstance(name, str) and is_plain_name(line.get("output")):
                self.records[name] = line


def check_settings(manifest: Manifest, settings: dict[str, Any]) -> None:
    """Refuse to go on with other settings than those that an output folder was begun with.

    Raises:
        FolderError: one differs.
    """
    before = manifest.started and manifest.started["settings"]
    if before is None or before == settings:
        return
    old, new = _flat(before), _flat(settings)
    name = next((name for name in {**new, **old} if old.get(name) != new.get(name)), "format")
    raise FolderError(
        f"expected the settings that the output folder was begun with ({name} {old.get(name)}), got {name} "
        f"{new.get(name)}; choose another output folder, or do all pictures again with --overwrite"
    )


def choose_targets(names: list[str], manifest: Manifest) -> dict[str, str]:
    """Name every picture's result; a picture that has one already keeps it, whatever came into the folder since."""
    wanted = target_names(names, [Saver(key="batch")])
    kept = {name: str(record["output"]) for name, record in manifest.records.items() if "output" in record}
    taken = {target.casefold() for target in kept.values()}
    targets: dict[str, str] = {}
    for name in names:
        targets[name] = kept.get(name) or free_name(wanted[name][0], taken)
        taken.add(targets[name].casefold())
    return targets


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        flat.update({f"{name} {key}".strip(): part for key, part in parts})
    return flat
