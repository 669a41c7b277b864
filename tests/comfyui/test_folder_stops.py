"""Folders that are stopped: by Cancel, a cleared queue, a killed server; and the turns of others in between."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from comfy_host import ComfyServer
from folders import Job, make_pictures, wait_idle
from PIL import Image

NAMES = [f"{number}.png" for number in range(1, 9)]


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside ComfyUI's that the server's owner allows."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def own_server(allowed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server that may be killed, with a node that takes its time."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "custom_nodes").mkdir()
    shutil.copy(Path(__file__).with_name("wait_pack.py"), folder / "custom_nodes")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("EAM_FOLDERS", str(allowed))
            running = stack.enter_context(ComfyServer(folder))
        yield running


def waiting(load: str, held: int, seconds: float) -> tuple[str, dict[str, Any]]:
    return "TestWait", {"seconds": seconds, "index": [load, 4], "held": held}


def slow_job(server: ComfyServer, held: int, seconds: float = 0.05) -> Job:
    """Give a job that takes its time with each picture, and more of it with the one of number `held`."""
    job = Job(server, waiting("load", held, seconds))
    make_pictures(job.folder, *NAMES)
    return job


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begun(job: Job) -> list[str]:
    return [line["name"] for line in job.lines("begun")] if (job.output / "eam_folder.jsonl").exists() else []


def last_text(server: ComfyServer) -> str:
    last = list(server._get("/history").json().values())[-1]
    assert last["status"]["status_str"] == "success"
    return last["outputs"]["load"]["text"][0]


def test_cancel_stops_the_folder_and_queueing_goes_on(own_server: ComfyServer) -> None:
    job = slow_job(own_server, 3)
    job.queue()
    wait_for(lambda: begun(job) == NAMES[:3])
    time.sleep(0.1)
    own_server.interrupt()
    wait_idle(own_server)
    assert last_text(own_server) == "Stopped at 2 of 8; queue again to go on."
    assert job.results() == NAMES[:2]
    assert [line["name"] for line in job.lines("interrupted")] == ["3.png"]
    assert job.run() == "Finished: 8 of 8."
    assert [line["name"] for line in job.lines("done")] == NAMES


def test_cancel_stops_both_folders_of_a_graph(own_server: ComfyServer) -> None:
    job, other = slow_job(own_server, 3), Job(own_server)
    make_pictures(other.folder, *NAMES)
    job.second(other.folder.name, other.output.name, waiting("load2", 3, 0.05))
    job.queue()
    wait_for(lambda: begun(job)[2:] == NAMES[2:3] or begun(other)[2:] == NAMES[2:3])
    time.sleep(0.1)
    own_server.interrupt()
    wait_idle(own_server)
    assert len(begun(job)) <= 3 and len(begun(other)) <= 3
    assert len(job.results()) <= 3 and len(other.results()) <= 3
    assert job.run() == "Finished: 8 of 8."
    assert [line["name"] for one in (job, other) for line in one.lines("done")] == [*NAMES, *NAMES]


def test_a_stopped_overwrite_goes_on(own_server: ComfyServer) -> None:
    job = slow_job(own_server, 3)
    assert job.run() == "Finished: 8 of 8."
    job.queue(existing="overwrite")
    wait_for(lambda: begun(job)[8:] == NAMES[:3])
    time.sleep(0.1)
    own_server.interrupt()
    wait_idle(own_server)
    assert last_text(own_server) == "Stopped at 2 of 8; queue again to go on; a changed graph begins anew."
    assert job.run() == "Finished: 8 of 8."
    assert begun(job)[8:] == [*NAMES[:3], *NAMES[2:]]


def test_results_that_are_none_are_listed(own_server: ComfyServer) -> None:
    job = Job(own_server, ("TestBadResult", {"index": ["load", 4]}))
    make_pictures(job.folder, *NAMES)
    assert job.run().startswith("Finished: 6 of 8, 2 failed")
    errors = {line["name"]: line["error"] for line in job.lines("failed")}
    assert "expected finite colours, got NaN or infinity" in errors["2.png"]
    assert "expected at least one result, got an empty batch" in errors["3.png"]
    assert not any("\n" in error for error in errors.values())
    assert job.results() == [name for name in NAMES if name not in errors]


def test_clearing_the_queue_stops_after_the_picture(own_server: ComfyServer) -> None:
    job = slow_job(own_server, 2)
    job.queue()
    wait_for(lambda: begun(job) == NAMES[:2])
    own_server._post("/queue", json={"clear": True})
    wait_idle(own_server)
    assert job.results() == NAMES[:2]
    assert job.run() == "Finished: 8 of 8."
    assert [line["name"] for line in job.lines("done")] == NAMES


def test_other_prompts_get_their_turn(own_server: ComfyServer) -> None:
    job, other = slow_job(own_server, 2, seconds=0.3), Job(own_server)
    make_pictures(other.folder, "a.png")
    job.queue()
    wait_for(lambda: len(begun(job)) == 2)
    other.queue()
    wait_for(lambda: other.results() == ["a.png"] if other.output.exists() else False)
    assert len(job.results()) < 5
    wait_idle(own_server)
    assert job.results() == NAMES and other.results() == ["a.png"]


def test_a_picture_that_vanishes_in_between(own_server: ComfyServer) -> None:
    job = slow_job(own_server, 1)
    job.queue()
    wait_for(lambda: begun(job) == NAMES[:1])
    (job.folder / "5.png").unlink()
    wait_idle(own_server)
    assert last_text(own_server).startswith("Finished: 7 of 8, 1 failed")
    assert job.lines("failed")[0]["error"].endswith("found no such file; check the path.")


def test_a_full_disk_stops_the_folder(own_server: ComfyServer) -> None:
    job = Job(own_server, ("TestFullDisk", {"index": ["load", 4], "full_at": 3}))
    make_pictures(job.folder, *NAMES)
    job.queue()
    wait_idle(own_server)
    assert last_text(own_server).startswith("Stopped at 2 of 8, 1 failed: ")
    assert "No space left on device" in last_text(own_server)
    assert begun(job) == NAMES[:3] and job.results() == NAMES[:2]
    job.prompt["step0"]["inputs"]["full_at"] = 0
    assert job.run() == "Finished: 8 of 8."


# The last one: it ends the server.
def test_a_killed_server(own_server: ComfyServer, server: ComfyServer, allowed: Path) -> None:
    killed = slow_job(own_server, 4)
    make_pictures(allowed / "in", *NAMES)
    killed.output = allowed / "out"
    killed.queue(folder=str(allowed / "in"), output_folder=str(killed.output))
    wait_for(lambda: begun(killed) == NAMES[:4])
    own_server._process.kill()
    own_server._process.wait()
    for name in killed.results():
        Image.open(killed.output / name).load()

    job = Job(server)
    make_pictures(job.folder, *NAMES)
    shutil.copytree(killed.output, job.output)
    report = job.output / "eam_folder.jsonl"
    report.write_text(report.read_text().replace(json.dumps(str(allowed / "in")), json.dumps(job.folder.name)))
    before = {name: (job.output / name).stat().st_mtime_ns for name in killed.results()}
    assert NAMES[:3] == list(before)[:3]
    assert job.run() == "Finished: 8 of 8."
    assert job.results() == NAMES
    assert {name: (job.output / name).stat().st_mtime_ns for name in before} == before
    # Folders that only the other server's owner allowed.
    assert job.error(folder=str(allowed / "in")).startswith("folder: expected a folder inside ComfyUI's input folder")
