"""What a batch has done: lines of JSON beside its results, of which the last one of a picture counts."""

import hashlib
import json
import re
import secrets
import unicodedata
from datetime import datetime, timezone
from typing import Any

from .batch_store import Folder, LocalFolder, is_plain_name, refuse_links
from .errors import FolderError
from .folder_names import Saver, free_name, target_names
from .images import OUTPUT_SUFFIXES

MANIFEST = "eam_batch.jsonl"
# Where nothing can be appended, a file holds so many lines and is written anew with each; then the next one begins.
_SEGMENT_LINES = 200
# The token is the writer's own: one that lost its lock and does not know yet never writes over another's lines.
_SEGMENT = re.compile(r"eam_batch-\d{6}(-[0-9a-f]{8})?\.jsonl")
_TEXTS = ("time", "state", "name", "output", "settings", "input_sha256", "output_sha256", "worker", "error")
_NUMBERS = ("seed", "input_bytes", "output_bytes", "width", "height", "seconds")
_NEEDED = ("input_bytes", "output_bytes", "output_sha256")  # without them nobody can tell whether a result is whole

Record = dict[str, Any]


class Manifest:
    """The lines of one output folder.

    Attributes:
        records: {picture: its last line that is writing, done or failed}.
        started: the last line that says which settings hold; None before the first.
        replaces: files that this batch did not write and may replace, as `_same_name` gives them.
        anew: whether this start may replace what is in the way.

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
        self.replaces: set[str] = set()
        self.anew = False
        self._owners: dict[str, str] = {}
        self._waiting: list[str] = []
        self._torn = self._pressing = False
        refuse_links(folder, MANIFEST)
        segments = sorted(name for name in names if _SEGMENT.fullmatch(name))
        self._last_number = 0
        for name in [MANIFEST] * (MANIFEST in names) + segments:
            data = folder.peek(name) or b""
            self._load(data, int(name[10:16]) if name != MANIFEST else 0)
            # A driver that was killed may have left half a line.
            self._torn = bool(data) and not data.endswith(b"\n")
        self._number = 1 + max((int(name[10:16]) for name in segments), default=0)
        self._lines: list[str] = []
        self._token = secrets.token_hex(4)

    def start(self, settings: dict[str, Any], anew: bool) -> None:
        """Note the settings that hold from here on; on the disk after the next `flush`, once nothing is in the way.

        Args:
            settings: as JSON.
            anew: whether all pictures are to be done, whatever was done before, and files in the way replaced.
        """
        if anew or not self.started:
            self._forget()
        self.anew = anew
        self.started = self.add("started", settings=settings, first=anew or not self.started, anew=anew)

    def allow(self, files: list[str]) -> None:
        """Note files that may be replaced though this batch did not write them, by later starts as well."""
        if files:
            self.add("replacing", files=files)
            self.replaces |= {_same_name(file) for file in files}

    def _keep(self, name: str, record: Record) -> None:
        # A file that is another picture's already is nobody else's.
        if self._owners.setdefault(_same_name(record["output"]), name) == name:
            self.records[name] = record

    def _forget(self) -> None:
        self.records.clear()
        self.replaces.clear()
        self._owners.clear()

    def settings_name(self) -> str:
        """Return a short name of the settings that hold, by which a picture's line refers to them."""
        settings = self.started and self.started["settings"]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def add(self, state: str, name: str = "", **fields: Any) -> Record:
        """Add a line, which is on the disk after the next `flush`.

        Args:
            state: begun, writing, done or failed of a picture; started, replacing, stopped or finished of the batch.
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
        self._folder.write(f"eam_batch-{self._number:06d}-{self._token}.jsonl", "".join(self._lines).encode("ascii"))
        if len(self._lines) >= _SEGMENT_LINES:
            self._number, self._lines = self._number + 1, []

    def _load(self, data: bytes, number: int) -> None:
        # Two that began in the same moment have one number, and neither has seen, and so undone, the other's lines.
        alone = not number or number != self._last_number
        self._last_number = number
        for text in data.splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):  # half a line, or not ours
                continue
            if not isinstance(line, dict):
                continue
            state, name = line.get("state"), line.get("name")
            if state == "started" and isinstance(line.get("settings"), dict):
                self.started = line
                if line.get("first") and alone:
                    self._forget()
            elif state == "replacing" and isinstance(files := line.get("files"), list):
                self.replaces |= {_same_name(file) for file in files if isinstance(file, str)}
            elif isinstance(name, str) and (record := _checked(line)):
                self._keep(name, record)


def check_settings(manifest: Manifest, settings: dict[str, Any]) -> None:
    """Refuse to go on with other settings than those that an output folder was begun with.

    Raises:
        FolderError: one differs.
    """
    before = manifest.started and manifest.started["settings"]
    if before is None or not manifest.records:  # nothing was done with the older ones
        return
    old, new = _flat(before), _flat(settings)
    if old == new:
        return
    name = next((name for name in {**new, **old} if old.get(name) != new.get(name)), "format")
    raise FolderError(
        f"expected the settings that the output folder was begun with ({name} {old.get(name)}), got {name} "
        f"{new.get(name)}; choose another output folder, or do all pictures again with --overwrite"
    )


def choose_targets(names: list[str], manifest: Manifest) -> dict[str, str]:
    """Name every picture's result; a picture that has one already keeps it, whatever came into the folder since."""
    wanted = target_names(names, [Saver(key="batch")])
    kept = {name: str(record["output"]) for name, record in manifest.records.items() if "output" in record}
    taken = {form for target in kept.values() for form in _forms(target)}
    targets: dict[str, str] = {}
    for name in names:
        targets[name] = kept.get(name) or free_name(wanted[name][0], taken)
        taken |= _forms(targets[name])
    return targets


def refuse_foreign(manifest: Manifest, targets: dict[str, str], present: dict[str, int], where: str) -> None:
    """Refuse to replace files that this batch did not write; a start anew notes them as those it may.

    Args:
        manifest: of the output folder.
        targets: {picture: name of its result}.
        present: files in the output folder.
        where: what the user calls that folder.

    Raises:
        FolderError: such a file has a result's name.
    """
    own = {_same_name(record["output"]) for record in manifest.records.values()} | manifest.replaces
    foreign = {_same_name(name) for name in present} - own
    in_the_way = {target: name for name, target in targets.items() if _same_name(target) in foreign}
    if manifest.anew:
        manifest.allow(list(in_the_way))
        return
    for target, name in in_the_way.items():
        raise FolderError(
            f"{target}: expected no file of that name yet in {where}, got one that this batch did not write (for "
            f"{name}); choose another output folder, or replace such files with --overwrite"
        )


def _same_name(name: str) -> str:
    """Return what names have in common that some systems take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _forms(name: str) -> set[str]:
    return {unicodedata.normalize("NFC", name).casefold(), unicodedata.normalize("NFD", name).casefold()}


def _checked(line: Record) -> Record | None:
    """Return the known fields of a picture's line; None if one is missing or of another kind."""
    record = {key: line[key] for key in (*_TEXTS, *_NUMBERS) if key in line}
    texts = all(isinstance(record[key], str) for key in _TEXTS if key in record)
    if not texts or any(type(record[key]) not in (int, float) for key in _NUMBERS if key in record):
        return None
    if record.get("state") not in ("writing", "done", "failed") or not is_plain_name(record.get("output")):
        return None
    if record["state"] != "failed" and not all(key in record for key in _NEEDED):
        return None
    return record if record["output"].lower().endswith(OUTPUT_SUFFIXES) else None


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        flat.update({f"{name} {key}".strip(): part for key, part in parts})
    flat.pop("config tile_batch", None)  # how many tiles a call takes does not change the picture
    return flat
