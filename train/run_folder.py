"""A run's folder: its config, its log, and checkpoints that are whole or not there.

config.json            the resolved settings, written before the first step
log.jsonl              one line per logged step
tensorboard/           the same, and validation pictures
checkpoints/step-N.*   a safetensors file with every trained tensor, and a .json written after it with its hash
NAME.safetensors       the averaged weights, as users load them
summary.json           written at the end
"""

import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from eam_core.errors import CheckpointError, DiskError, EAMError
from eam_core.weight_files import read_weights, save_weights
from train.config import FREE_FIELDS

log = logging.getLogger(__name__)

_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.part")  # as write_text and save_weights name what is not whole yet
_LEFTOVER_AGE = 3600.0  # seconds; a younger one may be another process's, which is still writing it


class Checkpoint(NamedTuple):
    """Everything a run needs to go on: optimiser steps done, and its tensors by name."""

    step: int
    tensors: dict[str, Tensor]


class RunFolder:
    """Read and write one run's folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved settings, or check them against those that the folder's run was started with.

        Raises:
            EAMError: the folder belongs to a run with other settings.
            DiskError: the folder cannot be written.
        """
        file = self.path / "config.json"
        config = json.loads(json.dumps(config))  # tuples become lists, as they will be read
        if file.exists():
            try:
                before = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise EAMError(f"expected the settings of a run in {file}, but it is damaged ({error})") from error
            now, then = _flat(config), _flat(before)
            changed = [
                f"{name} {now.get(name)!r} instead of {then.get(name)!r}"
                for name in sorted(now.keys() | then.keys())
                if name not in FREE_FIELDS and now.get(name) != then.get(name) and not _unknown_then(name, now, then)
            ]
            if changed and any(self.checkpoints.glob("step-*.json")):
                raise EAMError(
                    f"expected the settings that the run in {self.path} was started with, got {', '.join(changed[:4])}"
                    f"{' and more' if len(changed) > 4 else ''}; use those, or another --run-dir for a new run"
                )
        write_text(file, json.dumps(config, indent=2) + "\n")

    def save(self, step: int, tensors: Mapping[str, Tensor], *, keep_last: int) -> None:
        """Write a checkpoint, then drop older ones beyond the newest `keep_last`.

        Raises:
            DiskError: the disk is full; earlier checkpoints stay.
        """
        weights = self.checkpoints / f"step-{step:08d}.safetensors"
        save_weights(weights, tensors)
        write_text(weights.with_suffix(".json"), json.dumps({"step": step, "blake2b": _digest(weights)}) + "\n")
        for note in self._notes()[:-keep_last]:
            note.unlink()
            note.with_suffix(".safetensors").unlink(missing_ok=True)

    def load_last(self) -> Checkpoint | None:
        """Read the newest whole checkpoint; damaged ones are passed over with a warning. None: there is none.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
        """
        for leftover in self.checkpoints.glob(".*.part"):  # of a killed process
            leftover.unlink()
        drop_leftovers(self.path)
        notes = self._notes()
        for note in reversed(notes):
            weights = note.with_suffix(".safetensors")
            try:
                entry = json.loads(note.read_text(encoding="utf-8"))
                if entry["blake2b"] != _digest(weights):
                    raise CheckpointError(f"{weights.name} is not what was written")
                return Checkpoint(entry["step"], read_weights(weights))
            except (OSError, ValueError, KeyError, TypeError, RecursionError, EAMError) as error:
                log.warning(f"the checkpoint {weights.name} is damaged ({error}); going back to the one before")
        if notes:
            raise CheckpointError(
                f"expected a whole checkpoint in {self.checkpoints}, found {len(notes)} damaged; "
                "delete them to start from the beginning"
            )
        return None

    def append_log(self, entry: Mapping[str, Any]) -> None:
        """Add one line to the log."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def cut_log(self, step: int) -> None:
        """Drop what was logged after a step that the run now goes back to."""
        file = self.path / "log.jsonl"
        if file.exists():
            kept = []
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    kept += [line] if json.loads(line)["step"] <= step else []
                except (ValueError, KeyError):
                    continue  # half a line of a killed process
            write_text(file, "".join(line + "\n" for line in kept))

    def _notes(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*.json"))


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears under its name only when it is whole; of several writers the last one stays.

    Raises:
        DiskError: it cannot be written.
        UnicodeEncodeError: the text has half characters.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise DiskError(f"could not write {path} ({error}); free some space or choose another folder") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def drop_leftovers(folder: Path) -> None:
    """Take away what killed processes left half written in a folder and below it, some time ago."""
    for path in folder.rglob(".*.part"):
        with suppress(OSError):
            if _LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > _LEFTOVER_AGE:
                path.unlink()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under the names of their options."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, "mask_" if name == "mask" else "")
        else:
            flat[prefix + name] = value
    return flat


def _unknown_then(name: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    """Whether a text setting came after the run was started, and is not used: a newer version may go on with it."""
    return name not in then and now[name] == ""


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
