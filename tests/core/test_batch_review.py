"""What a review of batches found: hangs, names, sticky leave, stray lines, and secrets in URLs."""

import sys

import pytest
from batch_runs import make_pictures
from test_batch import NoLock, Told, Workers, begin

from eam_core.batch_local import LocalEngine
from eam_core.batch_store import LocalFolder

DIED = {"state": "died", "error": "killed"}


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "out").mkdir()
    return LocalFolder(make_pictures(tmp_path / "in", 2)), LocalFolder(tmp_path / "out")


def test_picture_of_a_worker_that_is_given_up_goes_to_one_that_waits(folders):
    class OneDies(Workers):
        rounds = 0

        def send(self, slot, message):
            if slot == 1 and self.starts > 2 and message["do"] == "load":
                self.answers.append((1, DIED))
            elif slot == 0 or message["do"] == "load":
                super().send(slot, message)

        def receive(self, timeout):
            self.rounds += 1
            # The second worker dies over its picture once the first one has nothing left to do.
            return super().receive(timeout) or [(1, DIED)] * (self.rounds < 9)

    engine, told = OneDies(*folders), Told()
    run = begin(*folders)
    run.run(engine, NoLock(), told, lambda: engine.rounds > 50)
    assert sorted(told.ok) == ["0.png", "1.png"] and engine.starts == 2 + 3


@pytest.mark.parametrize("said", [b'{"state": "resto', b"hello\n", b"\xff\xfe\n", b"[1]\n", b'{"a": 1}\n'])
def test_worker_whose_answer_cannot_be_read_counts_as_lost(tmp_path, monkeypatch, said):
    program = tmp_path / "python"
    (tmp_path / "said").write_bytes(said)
    program.write_text(f"#!/bin/sh\ncat '{tmp_path}/said'\nexec sleep {60 if said.endswith(bytes([10])) else 0}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    engine = LocalEngine("{}", [{}])
    try:
        engine.start(0)
        (answer,) = engine.receive(20)
    finally:
        engine.close()
    assert answer[0] == 0 and answer[1]["state"] == "died" and "could not be read" in answer[1]["error"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
@pytest.mark.parametrize("name", ["c\\d.png", "x: y.png"])
def test_names_that_the_manifest_does_not_take_are_left_out(folders, name):
    source, output = folders
    (source.path / "0.png").rename(source.path / name)
    for left in (1, 0):
        with pytest.warns(UserWarning, match="left out"):
            run = begin(source, output)
        assert run.num_left == left
        run.run(Workers(source, output), NoLock(), Told(), lambda: False)
