"""Runs of a folder on a stand-in for ComfyUI's queue: one picture for each run, Cancel, and folders side by side."""

import heapq
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from folders import make_pictures

REPO = Path(__file__).resolve().parents[2]
NAMES = [f"{number}.png" for number in range(1, 6)]


class Host:
    """What the nodes use of ComfyUI: a queue with its history, and the browser that is connected."""

    def __init__(self) -> None:
        self.number, self.client_id, self.running = 0, "browser", ""
        self.mutex, self.queue, self.currently_running, self.history = threading.RLock(), [], {}, {}
        self.texts: list[str] = []
        self.prompt_queue = self

    def put(self, item: tuple) -> None:
        heapq.heappush(self.queue, item)

    def delete_history_item(self, prompt_id: str) -> None:
        self.history.pop(prompt_id, None)

    def send_progress_text(self, text: str, node_id: str, client_id: str) -> None:
        self.texts.append(text.encode().decode())

    def user_queues(self, prompt_id: str) -> None:
        self.number += 1
        self.put((self.number, prompt_id, {}))

    def start(self) -> None:
        item = heapq.heappop(self.queue)
        self.currently_running[0], self.running = item, item[1]

    def end(self, event: str = "") -> None:
        status = {"status_str": "error" if event else "success", "messages": [(event, {})] if event else []}
        self.history[self.currently_running.pop(0)[1]] = {"status": status}


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def nodes(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The pack's modules, loaded with stand-ins for the host's."""
    stand_ins = {
        "comfy": {"__path__": []},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": lambda: None},
        "comfy_execution": {"__path__": []},
        "comfy_execution.graph": {"ExecutionBlocker": object},
        "comfy_execution.utils": {"get_executing_context": lambda: SimpleNamespace(prompt_id=host.running)},
        "server": {"PromptServer": SimpleNamespace(instance=host)},
        "eam_pack": {"__path__": [str(REPO)]},
        "eam_pack.nodes": {"__path__": [str(REPO / "nodes")]},
    }
    for name, contents in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    names = {
        "runs": "nodes.folder_runs",
        "queue": "nodes.folder_queue",
        "batch": "eam_core.folder_batch",
        "names": "eam_core.folder_names",
        "errors": "eam_core.errors",
    }
    yield SimpleNamespace(**{key: importlib.import_module(f"eam_pack.{name}") for key, name in names.items()})
    for name in [name for name in sys.modules if name.startswith("eam_pack.")]:
        del sys.modules[name]


class Loader:
    """One EAM_LoadFolder and the EAM_SaveFolder behind it."""

    def __init__(self, nodes: SimpleNamespace, tmp_path: Path, source: str, output: str, **changes: Any) -> None:
        make_pictures(tmp_path / source, *NAMES)
        self.tmp_path, self.node_id = tmp_path, source
        savers = (nodes.names.Saver(key="save"),)
        places = {"folder": tmp_path / source, "output": tmp_path / output, "source": source}
        self.settings = nodes.batch.BatchSettings(**places, savers=savers, **changes)

    def step(self, runs: Any, graph: str = "") -> Any:
        return runs.step(self.settings, self.node_id, True, graph)

    def save(self, step: Any) -> None:
        step.item.batch.save(step.item.work, "save", [step.picture], {})


def test_asked_twice_in_one_run_the_picture_is_the_same(nodes: SimpleNamespace, host: Host, tmp_path: Path) -> None:
    runs, loader = nodes.runs.FolderRuns(nodes.queue.RunQueue()), Loader(nodes, tmp_path, "a", "out")
    host.user_queues("first")
    taken = []
    while host.queue:
        host.start()
        steps = [loader.step(runs) for _ in range(3)]
        assert len({step.text for step in steps}) == 1
        if steps[0].item:
            assert all(step.item is steps[0].item for step in steps)
            assert all((step.picture.rgb == steps[0].picture.rgb).all() for step in steps)
            taken.append(steps[0].item.work.name)
            loader.save(steps[2])
        host.end()
    assert taken == NAMES and steps[0].text == "Finished: 5 of 5."


def test_cancel_stops_every_loader_of_the_graph(nodes: SimpleNamespace, host: Host, tmp_path: Path) -> None:
    runs = nodes.runs.FolderRuns(nodes.queue.RunQueue())
    first, second = Loader(nodes, tmp_path, "a", "out_a"), Loader(nodes, tmp_path, "b", "out_b")
    host.user_queues("first")
    host.start()
    first.save(first.step(runs))
    second.save(second.step(runs))
    host.end()
    host.start()
    first.step(runs)
    host.end("execution_interrupted")
    host.start()
    assert first.step(runs).text == "Stopped at 1 of 5; queue again to go on."
    assert second.step(runs).text == "Stopped at 1 of 5; queue again to go on."
    host.end()
    assert not host.queue
    host.user_queues("again")
    host.start()
    assert [first.step(runs).item.work.name, second.step(runs).item.work.name] == ["2.png", "2.png"]


def test_two_folders_do_not_share_names_while_both_are_under_way(
    nodes: SimpleNamespace, host: Host, tmp_path: Path
) -> None:
    runs = nodes.runs.FolderRuns(nodes.queue.RunQueue())
    first, second = Loader(nodes, tmp_path, "a", "out"), Loader(nodes, tmp_path, "b", "out")
    apart = Loader(nodes, tmp_path, "c", "out_c")
    host.user_queues("first")
    host.start()
    first.step(runs)
    with pytest.raises(nodes.errors.FolderError, match="but folder 'a' is being saved there under the same names"):
        second.step(runs)
    assert apart.step(runs).item
    host.end("execution_interrupted")
    host.start()
    assert first.step(runs).item is None
    host.end()
    # The first was given up before it saved anything.
    host.user_queues("again")
    host.start()
    assert second.step(runs).item.work.name == "1.png"


def test_a_stopped_overwrite_goes_on_with_the_same_graph(nodes: SimpleNamespace, host: Host, tmp_path: Path) -> None:
    runs, loader = nodes.runs.FolderRuns(nodes.queue.RunQueue()), Loader(nodes, tmp_path, "a", "out", overwrite=True)

    def stopped_in_the_third(graph: str) -> list[str]:
        host.user_queues(f"{graph}{host.number}")
        taken = []
        for event in ("", "", "execution_interrupted"):
            host.start()
            step = loader.step(runs, graph)
            taken.append(step.item.work.name)
            if not event:
                loader.save(step)
            host.end(event)
        host.start()
        text = loader.step(runs, graph).text
        assert text.endswith("of 5; queue again to go on; a changed graph begins anew.")
        host.end()
        return taken

    assert stopped_in_the_third("graph") == ["1.png", "2.png", "3.png"]
    assert stopped_in_the_third("graph") == ["3.png", "4.png", "5.png"]
    assert stopped_in_the_third("another") == ["1.png", "2.png", "3.png"]


def test_what_makes_a_graph_another_one(nodes: SimpleNamespace) -> None:
    def mark(**inputs: Any) -> str:
        return nodes.runs.graph_mark({"1": {"class_type": "KSampler", "inputs": inputs, "is_changed": ["x"]}})

    assert mark(seed=1, steps=4) == mark(steps=4, noise_seed=2) != mark(steps=5)


def test_a_line_on_a_node_never_costs_a_picture(
    nodes: SimpleNamespace, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.queue.show_text("1", "1 of 2: caf\udce9 <b>.png")
    assert host.texts == ["1 of 2: caf? &lt;b&gt;.png"]

    def fails(*_: Any) -> None:
        raise OSError("the page is gone")

    monkeypatch.setattr(host, "send_progress_text", fails)
    nodes.queue.show_text("1", "2 of 2")
