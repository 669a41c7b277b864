"""A batch: hands pictures to workers, notes what becomes of each, and goes on where it was killed.

A result is written in two steps. A worker restores a picture and says the result's hash; the driver notes it in the
manifest, and only then does the worker write the file. So whatever is killed in between, the next start can tell a
finished result from a foreign file, and nothing is done twice or lost.
"""

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from .batch_lock import Lock
from .batch_manifest import Manifest, choose_targets, refuse_foreign
from .batch_store import Folder
from .errors import EAMError, FolderError

RETRIES = 2  # of a picture whose worker died
_LOADS = 3  # deaths while loading the model, one after the other, until a worker is given up
_PAUSE = 0.5  # seconds between looks at lock and stop
_LAST = 10.0  # seconds that a stop waits for files that are being written


class Engine(Protocol):
    """Workers that run somewhere: each answers one message at a time, see `batch_worker.PictureWorker`.

    Attributes:
        num_workers: they are numbered from 0, and a number is called a slot.
    """

    num_workers: int

    def start(self, slot: int) -> None:
        """Start a worker, in place of the one that was there."""
        ...

    def send(self, slot: int, message: dict[str, Any]) -> None:
        """Send a message to a worker that owes no answer."""
        ...

    def receive(self, timeout: float) -> list[tuple[int, dict[str, Any]]]:
        """Return answers that came within so many seconds; of a worker that is gone, one whose state is died."""
        ...

    def close(self) -> None:
        """Stop all workers at once; what they have not been told to write is dropped."""
        ...


class Listener(Protocol):
    """What the user is told."""

    def done(self, name: str, record: dict[str, Any]) -> None:
        """Tell of a picture that was restored."""
        ...

    def failed(self, sentence: str) -> None:
        """Tell of a picture that was not."""
        ...

    def note(self, sentence: str) -> None:
        """Tell what else happened."""
        ...


@dataclass(kw_only=True, eq=False)
class _Work:
    name: str
    target: str
    deaths: int = 0
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class _Slot:
    worker: str = ""
    work: _Work | None = None
    ready: bool = False
    deaths: int = 0
    given_up: bool = False


class BatchRun:
    """One start of a batch; the caller holds the output folder's lock.

    Args:
        source: folder of the pictures.
        output: folder of the results.
        manifest: of the output folder.
        sizes: of the pictures, see `Folder.pictures`.
        present: files in the output folder and their sizes.

    Raises:
        FolderError: a file that this batch did not write has a result's name.
    """

    def __init__(
        self, source: Folder, output: Folder, manifest: Manifest, sizes: dict[str, int], present: dict[str, int]
    ) -> None:
        self._manifest, self._output, self._sizes, self._present = manifest, output, sizes, present
        self.targets = choose_targets(list(sizes), manifest)
        if output.url == source.url:
            raise FolderError(f"{output.url}: expected an output folder apart from the input's; choose another one")
        refuse_foreign(manifest, self.targets, present, output.url)
        self.finished = {name for name in sizes if self._is_finished(name)}
        manifest.flush()
        self.failed: dict[str, str] = {}
        self._left = deque(_Work(name=n, target=self.targets[n]) for n in sizes if n not in self.finished)

    @property
    def num_left(self) -> int:
        """Pictures that wait for a worker."""
        return len(self._left)

    def run(self, engine: Engine, lock: Lock, listener: Listener, stopped: Callable[[], bool]) -> None:
        """Go through all that is left.

        Args:
            engine: where to work.
            lock: of the output folder.
            listener: whom to tell.
            stopped: asked often; true ends the run, and what is being restored is dropped.

        Raises:
            EAMError: nothing more can be done, such as with a full disk or a model that cannot be loaded.
        """
        self._engine, self._listener, manifest = engine, listener, self._manifest
        self._outbox: list[tuple[int, dict[str, Any]]] = []
        self._slots = [_Slot() for _ in range(min(engine.num_workers, len(self._left)))]
        try:
            for number in range(len(self._slots)):
                self._start(number)
            while not stopped() and (self._left or any(slot.work for slot in self._slots)):
                lock.check()
                for number, answer in engine.receive(_PAUSE):
                    self._take(number, self._slots[number], answer)
                self._give_idle()
                # One write for all that came at once: with many workers in a store, it is what a driver waits for.
                lock.check()
                manifest.flush()
                for number, message in self._outbox:
                    engine.send(number, message)
                self._outbox.clear()
            self._finish_writing()
        except EAMError as error:
            with contextlib.suppress(EAMError):  # such as the full disk or the lost lock that it is about
                lock.check()
                manifest.add("stopped", **self._counts(), error=str(error))
                manifest.flush()
            raise
        finally:
            engine.close()
        complete = len(self.finished) + len(self.failed) == len(self._sizes)
        lock.check()
        manifest.add("finished" if complete else "stopped", **self._counts())
        manifest.flush()

    def _counts(self) -> dict[str, Any]:
        return {"pictures": len(self._sizes), "finished": len(self.finished), "failed": len(self.failed)}

    def _finish_writing(self) -> None:
        """Wait a moment for workers that write; those that restore are stopped."""
        end = time.monotonic() + _LAST
        self._left.clear()
        while time.monotonic() < end and any(slot.work and slot.work.record for slot in self._slots):
            for number, answer in self._engine.receive(_PAUSE):
                slot = self._slots[number]
                if slot.work and slot.work.record and answer["state"] == "written":
                    self._done(slot, slot.work)
                elif slot.work and slot.work.record:
                    slot.work = None

    def _start(self, number: int) -> None:
        self._slots[number].ready = False
        self._engine.start(number)
        self._engine.send(number, {"do": "load"})

    def _take(self, number: int, slot: _Slot, answer: dict[str, Any]) -> None:
        state, error = answer["state"], str(answer.get("error", ""))
        for text in answer.get("warnings", []):
            self._listener.note(f"warning: {text}")
        if state in ("unusable", "stopped"):
            raise EAMError(error)
        if state in ("died", "crashed"):
            self._replace(number, slot, error)
            return
        work = slot.work
        if state == "ready":
            slot.ready, slot.deaths, slot.worker = True, 0, answer["worker"]
            for note in answer["notes"] if number == 0 else ():
                self._listener.note(note)
        elif work and state == "restored":
            self._note_hash(number, slot, work, answer)
            return
        elif work and state == "written":
            self._done(slot, work)
        elif work:
            self._fail(slot, work, error)
        self._give(number, slot)

    def _give_idle(self) -> None:
        """Hand on what a worker that is given up has left; others may have had nothing to do since."""
        for number, slot in enumerate(self._slots):
            if slot.ready and not slot.given_up and slot.work is None:
                self._give(number, slot)

    def _give(self, number: int, slot: _Slot) -> None:
        if not self._left:
            return
        slot.work = self._left.popleft()
        slot.work.record = {}
        self._manifest.add("begun", slot.work.name, worker=slot.worker)
        self._outbox.append((number, {"do": "restore", "name": slot.work.name, "target": slot.work.target}))

    def _note_hash(self, number: int, slot: _Slot, work: _Work, answer: dict[str, Any]) -> None:
        fields = {key: value for key, value in answer.items() if key not in ("state", "warnings")}
        assert self._manifest.started
        work.record = {
            "output": work.target,
            "settings": self._manifest.settings_name(),
            "seed": self._manifest.started["settings"]["config"]["seed"],
            "input_bytes": self._sizes[work.name],
            **fields,
            "worker": slot.worker,
        }
        self._manifest.add("writing", work.name, **work.record)
        self._outbox.append((number, {"do": "write"}))

    def _done(self, slot: _Slot, work: _Work) -> None:
        self._manifest.add("done", work.name, **work.record)
        self.finished.add(work.name)
        slot.work = None
        self._listener.done(work.name, work.record)

    def _fail(self, slot: _Slot, work: _Work, error: str) -> None:
        self._manifest.add("failed", work.name, output=work.target, worker=slot.worker, error=error)
        self.failed[work.name] = error
        slot.work = None
        self._listener.failed(error)

    def _replace(self, number: int, slot: _Slot, error: str) -> None:
        work = slot.work
        self._outbox = [(to, message) for to, message in self._outbox if to != number]
        if work:
            work.deaths += 1
            if work.deaths > RETRIES:
                tried = f"{work.deaths} workers were lost over it, the last one: {error}"
                self._fail(slot, work, f"{work.name}: expected a picture that a worker survives, but {tried}")
            else:
                self._listener.note(f"warning: {work.name}: {error}; it is tried again")
                self._left.appendleft(work)
                slot.work = None
        if not slot.ready:
            slot.deaths += 1
            slot.given_up = slot.deaths >= _LOADS
        if not slot.given_up:
            if slot.deaths:
                time.sleep(0.1 * slot.deaths)
            self._start(number)
        elif all(other.given_up for other in self._slots):
            raise EAMError(
                f"expected workers that load the model, but {_LOADS} in a row were lost while they did ({error}); take "
                "fewer workers or a smaller model"
            )

    def _is_finished(self, name: str) -> bool:
        """Tell whether a picture's result is there and whole."""
        record = self._manifest.records.get(name)
        if not record or record["state"] == "failed" or record.get("input_bytes") != self._sizes[name]:
            return False
        target = record["output"]
        if self._present.get(target) != record.get("output_bytes"):
            return False
        if record["state"] == "done":
            return True
        # All was killed between the file and the line about it.
        content = self._output.peek(target)
        if content is None or hashlib.sha256(content).hexdigest() != record.get("output_sha256"):
            return False
        fields = {key: value for key, value in record.items() if key not in ("time", "state", "name")}
        self._manifest.add("done", name, **fields)
        return True
