"""What a batch does with answers of its workers, with what it finds in the output folder, and with other stores."""

import hashlib
import json

import pytest
from batch_runs import hashes, lines, make_pictures

from eam_core.batch import BatchRun
from eam_core.batch_manifest import MANIFEST, Manifest
from eam_core.batch_store import LocalFolder
from eam_core.errors import EAMError, FolderError


class Told:
    def __init__(self):
        self.ok, self.bad, self.notes = [], [], []

    def done(self, name, record):
        self.ok.append(name)

    def failed(self, sentence):
        self.bad.append(sentence)

    def note(self, sentence):
        self.notes.append(sentence)


class Workers:
    """An engine whose workers copy pictures, and answer as a script says: {picture: answers in place of restored}."""

    def __init__(self, source, output, script=None, num_workers=2, load=None):
        self.num_workers, self.script, self.load = num_workers, script or {}, load
        self.source, self.output, self.answers, self.held, self.starts = source, output, [], {}, 0

    def start(self, slot):
        self.starts += 1
        self.held.pop(slot, None)

    def send(self, slot, message):
        if message["do"] == "load":
            answer = self.load or {"state": "ready", "worker": f"here:{slot}", "notes": []}
        elif message["do"] == "write":
            name, target = self.held[slot]
            self.output.write(target, self.source.read(name))
            answer = {"state": "written"}
        elif self.script.get(message["name"]):
            answer = self.script[message["name"]].pop(0)
        else:
            self.held[slot] = message["name"], message["target"]
            data = self.source.read(message["name"])
            digest = hashlib.sha256(data).hexdigest()
            answer = {"state": "restored", "input_sha256": digest, "output_sha256": digest, "output_bytes": len(data)}
        self.answers.append((slot, answer))

    def receive(self, timeout):
        answers, self.answers = self.answers, []
        return answers

    close = staticmethod(lambda: None)


class NoLock:
    check = staticmethod(lambda: None)


SETTINGS = {"input": "in", "config": {"seed": 3, "scale": 2.0}}


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "out").mkdir()
    return LocalFolder(make_pictures(tmp_path / "in", 5)), LocalFolder(tmp_path / "out")


def begin(source, output, anew=False):
    present = output.sizes()
    manifest = Manifest(output, list(present))
    manifest.start(SETTINGS, anew)
    return BatchRun(source, output, manifest, source.pictures(False), present)


def go(source, output, engine=None, stopped=lambda: False, **options):
    run, told = begin(source, output, **options), Told()
    run.run(engine or Workers(source, output), NoLock(), told, stopped)
    return run, told


def states(output, name):
    return [line["state"] for line in lines(output.path) if line.get("name") == name]


DIED = {"state": "died", "error": "the worker was killed by signal 9"}


def test_picture_of_a_dead_worker_is_tried_again_and_given_up_after_three(folders):
    source, output = folders
    engine = Workers(source, output, {"1.png": [DIED, DIED], "3.png": [DIED] * 3})
    run, told = go(source, output, engine)
    assert sorted(told.ok) == ["0.png", "1.png", "2.png", "4.png"] and run.finished == set(told.ok)
    assert list(run.failed) == ["3.png"] and "3 workers were lost" in told.bad[0] and "signal 9" in told.bad[0]
    assert engine.starts == 2 + 5
    assert states(output, "1.png") == ["begun", "begun", "begun", "writing", "done"]
    assert sorted(hashes(output.path)) == sorted(told.ok)
    # The next start tries it again, and nothing else.
    assert go(source, output)[1].ok == ["3.png"]


def test_worker_that_dies_right_after_its_answer_is_not_told_to_write(folders):
    source, output = folders

    class Hasty(Workers):
        def send(self, slot, message):
            super().send(slot, message)
            if message.get("name") == "2.png" and not self.died:
                self.died = True
                self.answers.append((slot, DIED))

    engine = Hasty(source, output)
    engine.died = False
    _, told = go(source, output, engine)
    assert sorted(told.ok) == [f"{number}.png" for number in range(5)]
    assert states(output, "2.png") == ["begun", "writing", "begun", "writing", "done"]


def test_failed_pictures_are_told_and_a_lasting_error_ends_all(folders):
    source, output = folders
    failed = {"state": "failed", "error": "2.png: expected a picture"}
    _, told = go(source, output, Workers(source, output, {"2.png": [failed]}))
    assert told.bad == ["2.png: expected a picture"] and len(told.ok) == 4
    full = {"state": "stopped", "error": "no space left"}
    with pytest.raises(EAMError, match="no space left"):
        go(source, output, Workers(source, output, {"2.png": [full]}))
    assert lines(output.path)[-1]["state"] == "stopped" and lines(output.path)[-1]["finished"] == 4


def test_workers_that_never_load_end_the_batch(folders):
    engine = Workers(*folders, load=DIED)
    with pytest.raises(EAMError, match="3 in a row were lost"):
        go(*folders, engine)
    assert engine.starts == 2 * 3
    unusable = {"state": "unusable", "error": "expected a control, got an autoencoder"}
    with pytest.raises(EAMError, match="got an autoencoder"):
        go(*folders, Workers(*folders, load=unusable))


def test_result_whose_last_line_was_lost_is_recognised(folders):
    source, output = folders
    go(source, output)
    path = output.path / MANIFEST
    kept = [line for line in path.read_bytes().splitlines(True) if json.loads(line)["state"] != "finished"]
    assert json.loads(kept[-1])["state"] == "done"
    name = json.loads(kept[-1])["name"]
    path.write_bytes(b"".join(kept[:-1]) + kept[-1][:40])  # half a line, as a kill leaves it
    run = begin(source, output)
    assert len(run.finished) == 5 and states(output, name)[-2:] == ["writing", "done"]
    # A file of the same size with other content is not the result that was noted.
    path.write_bytes(b"".join(kept[:-1]))
    content = (output.path / name).read_bytes()
    (output.path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert begin(source, output).finished == {f"{number}.png" for number in range(5)} - {name}


def test_lost_results_and_changed_inputs_are_done_again(folders):
    source, output = folders
    go(source, output)
    (output.path / "1.png").unlink()
    (output.path / "2.png").write_bytes(b"short")
    (source.path / "3.png").write_bytes(b"another picture")
    (output.path / ".eam_batch-0123456789abcdef.part").write_bytes(b"half")
    assert begin(source, output).finished == {"0.png", "4.png"}


def test_stop_finishes_what_is_being_written(folders):
    source, output = folders
    engine = Workers(source, output, num_workers=1)
    run, told = go(source, output, engine, stopped=lambda: any(a["state"] == "written" for _, a in engine.answers))
    assert told.ok == ["0.png"] and run.finished == {"0.png"}
    assert states(output, "0.png")[-1] == "done" and lines(output.path)[-1]["state"] == "stopped"


def test_foreign_files_are_never_replaced_unless_asked(folders):
    source, output = folders
    (output.path / "4.png").write_bytes(b"mine")
    with pytest.raises(FolderError, match=r"4\.png: expected no file .* --overwrite"):
        go(source, output)
    assert (output.path / "4.png").read_bytes() == b"mine"
    assert len(go(source, output, anew=True)[1].ok) == 5
    assert begin(source, output).num_left == 0


def test_results_keep_their_names_when_pictures_come(folders):
    source, output = folders
    (source.path / "4.png").rename(source.path / "4.tif")
    run, _ = go(source, output)
    assert run.targets["4.tif"] == "4.png"
    (source.path / "4.png").write_bytes(b"a new picture")
    run, told = go(source, output)
    assert told.ok == ["4.png"] and run.targets["4.png"] == "4_2.png" and run.targets["4.tif"] == "4.png"


@pytest.mark.parametrize(
    "name", ["../escaped.png", "/tmp/escaped.png", "a/../../b.png", "C:/x.png", 7, None, "a\\b.png"]
)
def test_manifest_of_a_stranger_leads_nowhere(folders, name):
    source, output = folders
    started = {"state": "started", "settings": SETTINGS, "first": True}
    texts = [started, {"state": "done", "name": "0.png", "output": name, "output_bytes": 1, "input_bytes": 2}]
    texts = [json.dumps(text) for text in texts] + ["[1]", "{", "\x00", "[" * 100_000, '{"state": "done", "name": 3}']
    (output.path / MANIFEST).write_text("\n".join(texts))
    run, told = go(source, output)
    assert run.targets["0.png"] == "0.png" and len(told.ok) == 5
    assert set(hashes(output.path)) == set(run.targets.values())
