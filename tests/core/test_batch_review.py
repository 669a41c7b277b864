"""What a review of batches found: hangs, names, sticky leave, stray lines, and secrets in URLs."""

import json
import sys
import unicodedata
import uuid

import fsspec
import pytest
from batch_runs import lines, make_pictures
from command_line import FAST
from test_batch import SETTINGS, NoLock, Told, Workers, begin, go

from eam_core import batch_remote, cli, cli_batch
from eam_core.batch import BatchRun
from eam_core.batch_local import LocalEngine
from eam_core.batch_manifest import MANIFEST, Manifest, check_settings, choose_targets
from eam_core.batch_remote import check_apart, open_folder, shown
from eam_core.batch_store import LocalFolder
from eam_core.errors import FolderError

DIED = {"state": "died", "error": "killed"}


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "out").mkdir()
    return LocalFolder(make_pictures(tmp_path / "in", 2)), LocalFolder(tmp_path / "out")


@pytest.fixture
def store():
    """Yield a new folder in fsspec's store in memory."""
    name = uuid.uuid4().hex
    yield open_folder(f"memory://{name}")
    files = fsspec.filesystem("memory")
    if files.exists(f"/{name}"):
        files.rm(f"/{name}", recursive=True)


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


def note(output, *records):
    started = {"state": "started", "settings": SETTINGS}
    with (output.path / MANIFEST).open("a") as file:
        records = records if file.tell() else (started, *records)
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_overwrite_allows_what_was_in_the_way_then_and_nothing_later(folders):
    source, output = folders
    (output.path / "0.png").write_bytes(b"old")
    (output.path / "1.png").write_bytes(b"old")
    assert begin(source, output, anew=True).num_left == 2
    assert begin(source, output).num_left == 2  # killed before it replaced them, and started again without
    go(source, output)
    make_pictures(source.path / "more", 1)
    (source.path / "more" / "0.png").rename(source.path / "Straße é.png")
    foreign = output.path / unicodedata.normalize("NFD", "STRASSE é.png")
    foreign.write_bytes(b"mine")
    with pytest.raises(FolderError, match="Straße é"):
        go(source, output)
    assert foreign.read_bytes() == b"mine" and begin(source, output, anew=True).num_left == 3


def test_two_spellings_of_one_name_get_two_results(tmp_path):
    (tmp_path / "out").mkdir()
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    targets = choose_targets(names, Manifest(LocalFolder(tmp_path / "out"), []))
    assert targets == {names[0]: names[0], names[1]: unicodedata.normalize("NFD", "é_2.png")}


def test_a_refused_start_and_one_that_did_nothing_fix_no_settings(folders):
    source, output = folders
    (output.path / "0.png").write_bytes(b"mine")
    with pytest.raises(FolderError, match=r"0\.png"):
        begin(source, output)
    assert not (output.path / MANIFEST).exists()
    (output.path / "0.png").unlink()
    begin(source, output)
    other = {"input": "in", "config": {"seed": 4, "scale": 2.0, "tile_batch": 1}}
    check_settings(Manifest(output, [MANIFEST]), other)
    go(source, output)
    manifest = Manifest(output, [MANIFEST])
    with pytest.raises(FolderError, match="config seed 3"):
        check_settings(manifest, other)
    check_settings(manifest, {"input": "in", "config": {"seed": 3, "scale": 2.0, "tile_batch": 8}})


DONE = {"state": "done", "name": "0.png", "output": "0.png", "input_bytes": 1, "output_bytes": 1, "output_sha256": "0"}


@pytest.mark.parametrize(
    "wrong",
    [{"output_bytes": None}, {"input_bytes": "1"}, {"output_sha256": 1}, {"output": MANIFEST}, {"seed": [1]}],
)
def test_lines_with_fields_of_another_kind_say_nothing(folders, wrong):
    note(folders[1], DONE | wrong)
    assert not Manifest(folders[1], [MANIFEST]).records
    note(folders[1], DONE)
    assert Manifest(folders[1], [MANIFEST]).records == {"0.png": DONE}


def test_a_done_line_without_a_size_does_not_stand_for_a_file(folders):
    source, output = folders
    line = {**DONE, "input_bytes": source.pictures(False)["0.png"]}
    del line["output_bytes"]
    note(output, line)
    assert begin(source, output).num_left == 2


def test_unknown_fields_are_dropped(folders):
    source, output = folders
    go(source, output)
    written = [line for line in lines(output.path) if line["state"] == "writing"]
    note(output, {**written[0], "self": 1, "state": "writing"})
    assert begin(source, output).num_left == 0
    assert "self" not in lines(output.path)[-1]


def test_two_pictures_never_share_a_result(folders):
    source, output = folders
    note(output, *({"state": "failed", "name": name, "output": "z.png"} for name in ("0.png", "1.png")))
    assert begin(source, output).targets == {"0.png": "z.png", "1.png": "1.png"}


@pytest.mark.parametrize("order", [("f" * 8, "0" * 8), ("0" * 8, "f" * 8)])
def test_driver_that_lost_the_lock_writes_over_nothing(folders, store, order):
    source, output = folders[0], store
    first, second = Manifest(output, []), Manifest(output, [])
    first._token, second._token = order
    for manifest in (first, second):
        manifest.start(SETTINGS, False)
        manifest.flush()
    second.add("done", "0.png", **{key: value for key, value in DONE.items() if key not in ("state", "name")})
    second.flush()
    first.add("stopped")
    first.flush()
    assert set(Manifest(output, list(output.sizes())).records) == {"0.png"}

    class Lost(NoLock):
        def check(self):
            if engine.answers:
                raise FolderError("expected to be the only batch")

    engine = Workers(source, output, num_workers=1)
    manifest = Manifest(output, list(output.sizes()))
    manifest.start(SETTINGS, True)
    run = BatchRun(source, output, manifest, source.pictures(False), output.sizes())
    before = {name: output.peek(name) for name in output.sizes()}
    with pytest.raises(FolderError, match="the only batch"):
        run.run(engine, Lost(), Told(), lambda: False)
    assert {name: output.peek(name) for name in output.sizes()} == before


@pytest.mark.parametrize(
    ("source", "output", "subfolders", "words"),
    [
        ("memory://NAME/in", "memory:///NAME/in/", False, "apart"),
        ("memory://NAME", "simplecache::memory://NAME", False, "apart"),
        ("memory://NAME/in", "memory:///NAME/in/out", True, "apart"),
        ("memory://NAME/in/a", "memory:///NAME/in", True, "apart"),
        ("memory://NAME/in", "memory:///NAME/in/out", False, ""),
        ("memory://NAME/in", "memory:///NAME/in2", True, ""),
        ("FOLDER", "simplecache::file://FOLDER", False, "apart"),
    ],
)
def test_folders_that_overlap_are_refused_however_they_are_written(tmp_path, store, source, output, subfolders, words):
    name = store.place[1]
    places = [text.replace("NAME", name).replace("FOLDER", str(tmp_path)) for text in (source, output)]
    folders = [open_folder(place) for place in places]
    if not words:
        check_apart(*folders, subfolders)
        return
    with pytest.raises(FolderError, match=words):
        check_apart(*folders, subfolders)
    assert cli.main(["batch", *places, *["--subfolders"] * subfolders]) == 2
    assert not store.sizes() and not list(tmp_path.rglob("*.jsonl"))


def test_secrets_in_urls_are_neither_shown_nor_noted(folders, monkeypatch, capsys):
    class Service(fsspec.get_filesystem_class("memory")):
        protocol, cachable = "ftp", False

        def find(self, *args, **kwargs):
            raise OSError("530 ftp://bob:s3cret@host/in?sig=s3cret refused")

    def url_to_fs(url, **options):
        assert "s3cret" in url
        return Service(), "/in"

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    url = "ftp://bob:s3cret@host/in?sig=s3cret"
    folder = open_folder(url)
    assert (folder.url, folder.address) == ("ftp://host/in", url)
    assert cli.main(["batch", url, str(folders[1].path)]) == 2
    said = "".join(capsys.readouterr())
    assert "ftp://host/in" in said and "s3cret" not in said and "bob" not in said
    assert shown("abfs://container@account.net/in") == "abfs://container@account.net/in"
    assert shown("simplecache::https://t0ken@h/x") == "simplecache::https://h/x"


def test_command_notes_no_secret_but_workers_get_it(folders, tiny_options, monkeypatch):
    source, output = folders
    plans = []

    def open_with_secret(text):
        folder = LocalFolder(source.path) if text.startswith("ftp") else open_folder(text)
        folder.address, folder.url = text, shown(text)
        return folder

    class Sized(Workers):
        def receive(self, timeout):
            return [(slot, {"width": 1, "height": 1, "seconds": 0.0} | said) for slot, said in super().receive(timeout)]

    def engine(args, plan, *rest):
        plans.append(plan)
        return Sized(source, output)

    monkeypatch.setattr(batch_remote, "open_folder", open_with_secret)
    monkeypatch.setattr(cli_batch, "_engine", engine)
    assert cli.main(["batch", "ftp://bob:s3cret@host/in", str(output.path), *FAST, *tiny_options]) == 0
    assert plans[0].input == "ftp://bob:s3cret@host/in" and plans[0].weights["base"]
    manifest = (output.path / MANIFEST).read_text()
    assert "ftp://host/in" in manifest and "s3cret" not in manifest
