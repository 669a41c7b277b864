"""Folders under way: what one run of EAM_LoadFolder does, given how the runs before it ended."""

import json
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_execution.graph import ExecutionBlocker

from ..eam_core.errors import FolderError, ImageError, printable
from ..eam_core.folder_batch import Batch, BatchSettings, Work
from ..eam_core.folder_names import Format, Saver
from ..eam_core.folder_places import check_suffix
from ..eam_core.images import Picture
from .folder_queue import RunQueue

# Folders in memory at once; the least recently used one is forgotten, its results are not.
_KEPT_FOLDERS = 16


@dataclass(kw_only=True, eq=False)
class FolderItem:
    """What EAM_LoadFolder hands to EAM_SaveFolder: a picture's place in a folder's pass."""

    batch: Batch
    work: Work


@dataclass(kw_only=True)
class Step:
    """What one run does: a picture, or none; and what to tell the user."""

    text: str
    picture: Picture | None = None
    item: FolderItem | None = None


@dataclass(kw_only=True, eq=False)
class _Pass:
    batch: Batch
    graph: str = ""
    last: tuple[str, Step] = ("", Step(text=""))
    open: dict[str, list[Work]] = field(default_factory=dict)
    next_prompt: str = ""
    worked: bool = False
    ended: bool = False


class FolderRuns:
    """All folders under way on this server."""

    def __init__(self, queue: RunQueue) -> None:
        self._queue = queue
        self._passes: OrderedDict[Any, _Pass] = OrderedDict()
        self._lock = threading.Lock()

    def step(self, settings: BatchSettings, node_id: str, go_on: bool, graph: str = "") -> Step:
        """Take the next picture of a folder; asked again in the same run, answer the same.

        Args:
            settings: what to go through; a change of them begins anew.
            node_id: the node that asks.
            go_on: whether to queue the prompt again for the picture after.
            graph: mark of what is done to the pictures, see `graph_mark`.
        """
        with self._lock:
            prompt_id = self._queue.running()
            current = self._passes.get((node_id, settings))
            # Without a cache, the host runs a node again for each part that another node puts into the graph.
            if current and prompt_id and current.last[0] == prompt_id:
                step = current.last[1]
                return replace(step, picture=step.item.batch.load(step.item.work)) if step.item else step
            step = self._advance(current, settings, node_id, prompt_id, go_on, graph)
            current = self._passes.get((node_id, settings))
            if current:
                current.last = (prompt_id, replace(step, picture=None))
            return step

    def _advance(
        self, current: _Pass | None, settings: BatchSettings, node_id: str, prompt_id: str, go_on: bool, graph: str
    ) -> Step:
        continues = self._queue.was_queued_here(prompt_id)
        if current:
            self._passes.move_to_end((node_id, settings))
        interrupted = current is not None and self._settle(current, prompt_id)
        if continues and (current is None or current.ended):
            return Step(text=current.batch.summary() if current else "Stopped; queue again to go on.")
        if current is None or current.ended or (go_on and not continues and not self._under_way(current)):
            current = self._begin(current, settings, node_id, graph)
        # Another loader's picture may have been the one in work when Cancel came.
        if continues and (interrupted or current.batch.stopped or self._queue.was_interrupted_before(prompt_id)):
            current.batch.end("stopped")
            return Step(text=self._stop_text(current.batch))
        return self._take(current, prompt_id, go_on)

    def _begin(self, stopped: _Pass | None, settings: BatchSettings, node_id: str, graph: str) -> _Pass:
        """Begin a pass, or go on with a stopped one whose results on disk do not tell what is left of it."""
        if stopped and not stopped.ended and settings.overwrite and stopped.graph == graph:
            stopped.batch.resume()
            return stopped
        key = (node_id, settings)
        self._passes.pop(key, None)
        batch = Batch(settings)
        self._refuse_shared(batch)
        self._passes[key] = _Pass(batch=batch, graph=graph)
        while len(self._passes) > _KEPT_FOLDERS:
            self._passes.popitem(last=False)
        return self._passes[key]

    def _refuse_shared(self, batch: Batch) -> None:
        """Refuse a pass that would save under names of another one that is under way."""
        for other in self._passes.values():
            output, source = other.batch.settings.output, other.batch.settings.source
            if other.ended or output != batch.settings.output:
                continue
            live = any(run and self._queue.outcome(run) is None for run in (other.next_prompt, *other.open))
            if live and not batch.results.names.isdisjoint(other.batch.results.names):
                batch.end("stopped")
                raise FolderError(
                    f"{output.name}: expected an output folder of its own, but folder {source!r} is being saved there "
                    "under the same names; choose another output_folder, or wait until it is through"
                )

    def _under_way(self, current: _Pass) -> bool:
        return bool(current.next_prompt) and self._queue.is_waiting(current.next_prompt)

    def _settle(self, current: _Pass, prompt_id: str) -> bool:
        """Note how earlier runs ended; return whether one was interrupted."""
        interrupted = False
        for earlier in [key for key in current.open if key != prompt_id]:
            ended = self._queue.outcome(earlier)
            if ended is None:
                continue
            interrupted |= ended[0] == "interrupted"
            works = current.open[earlier]
            while works:  # one by one: if the report cannot be written, the others are not lost
                current.batch.settle(works.pop(0), *ended)
            del current.open[earlier]
        return interrupted

    def _take(self, current: _Pass, prompt_id: str, go_on: bool) -> Step:
        batch = current.batch
        work = batch.pick()
        current.worked |= work is not None
        # At the start, so that an error further down the graph does not stop the rest. The run behind the last
        # picture notes how that one ended.
        if work and go_on and not self._under_way(current):
            current.next_prompt = self._queue.again(prompt_id)
        while work:
            # Set before it is read: if reading takes the whole run down, the next run knows whose fault it was.
            current.open[prompt_id] = [*current.open.get(prompt_id, []), work]
            try:
                picture = batch.load(work)
                hint = "; queue again for the next one" if go_on and not current.next_prompt else ""
                text = f"{printable(work.name)} begun; {batch.progress()} finished{hint}."
                return Step(text=text, picture=picture, item=FolderItem(batch=batch, work=work))
            except ImageError as error:
                current.open[prompt_id].remove(work)
                batch.fail(work, str(error))
            except FolderError:  # it is gone as a whole: none of its pictures failed
                current.open[prompt_id].remove(work)
                batch.settle(work, "interrupted")
                raise
            throw_exception_if_processing_interrupted()
            work = batch.pick()
        current.ended = True
        if not current.worked:
            return Step(text=f"Nothing is left to do: all {len(batch.positions)} pictures are finished.")
        batch.end("finished")
        return Step(text=batch.summary())

    def _stop_text(self, batch: Batch) -> str:
        if batch.stopped:
            return f"Stopped at {batch.progress()}: {batch.stopped}"
        anew = "; a changed graph begins anew" if batch.settings.overwrite else ""
        return f"Stopped at {batch.progress()}; queue again to go on{anew}."


def find_savers(prompt: dict[str, Any], node_id: str) -> tuple[Saver, ...]:
    """List what the prompt's EAM_SaveFolder nodes save of this node's pictures.

    Raises:
        FolderError: their format or suffix is not written in the node.
    """
    savers = []
    for key, node in prompt.items():
        inputs = _inputs(node)
        if node.get("class_type") != "EAM_SaveFolder" or inputs.get("item") != [node_id, 1]:
            continue
        values = inputs.get("format", "as input"), inputs.get("suffix", "")
        if not all(isinstance(value, str) for value in values):
            raise FolderError("EAM Save Folder: expected format and suffix in the node itself, got a link; remove it")
        if values[0] not in get_args(Format):  # ComfyUI checks the nodes alone that it runs
            raise FolderError(
                f"EAM Save Folder: expected a format of {', '.join(get_args(Format))}, got {values[0]!r}; choose one"
            )
        check_suffix(values[1])
        savers.append(Saver(key=str(key), format=values[0], suffix=values[1]))
    return tuple(savers)


def graph_mark(prompt: dict[str, Any]) -> str:
    """Write down what a graph does, so that two can be compared, without seeds: they may change with each run."""
    marks = {}
    for key, node in prompt.items():
        inputs = {name: value for name, value in _inputs(node).items() if "seed" not in name}
        marks[key] = (node.get("class_type"), inputs)
    return json.dumps(marks, sort_keys=True, default=str)


def _inputs(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node's inputs; core looks only at those of nodes that lead to an output."""
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def nothing(count: int) -> list[ExecutionBlocker]:
    """Return outputs that end what depends on them, without an error."""
    return [ExecutionBlocker(None)] * count


def planned_ending(item: Any, key: str) -> str:
    """Return the ending of the file that a saver writes, such as ".png".

    Raises:
        FolderError: the loader did not know of this saver.
    """
    if not isinstance(item, FolderItem) or key not in item.work.targets:
        raise FolderError(
            "EAM Save Folder: expected item straight from EAM Load Folder, got it by another way; connect the two "
            "directly"
        )
    return os.path.splitext(item.work.targets[key])[1].lower()


RUNS = FolderRuns(RunQueue())
