"""The command `batch` in stores and on disks: results, refusals, and who may use a folder."""

import errno
import importlib.util
import os
import re
import time
import uuid
from pathlib import Path

import fsspec
import pytest
from batch_runs import make_pictures
from command_line import FAST, refused

from eam_core import cli, file_lock
from eam_core.batch_lock import LOCK, locked
from eam_core.batch_manifest import MANIFEST
from eam_core.batch_remote import open_folder
from eam_core.errors import FolderError


def batch(capsys, *args):
    status = cli.main(["batch", *map(str, args)])
    return status, *capsys.readouterr()


@pytest.fixture
def store(one_thread):
    """Fsspec's store in memory, and URLs of two new folders in it."""
    name = uuid.uuid4().hex
    files = fsspec.filesystem("memory")
    yield files, f"memory://{name}/in", f"memory://{name}/out"
    files.rm(f"/{name}", recursive=True)


def test_store_gets_what_upscale_makes(store, tiny_options, tmp_path, capsys):
    files, source, target = store
    folder = make_pictures(tmp_path / "in", 2)
    (folder / "10.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("left out")
    files.put(f"{folder}/", source, recursive=True)
    options = [*FAST, *tiny_options]
    status, out, err = batch(capsys, source, target, *options)
    assert status == 1 and len(out.splitlines()) == 2 and "1 of 3 pictures were not restored" in err
    assert cli.main(["upscale", str(folder), str(tmp_path / "out"), *options]) == 1
    capsys.readouterr()
    root = target.removeprefix("memory:/")
    for name in ("0.png", "1.png"):
        assert files.cat(f"{root}/{name}") == (tmp_path / "out" / name).read_bytes()
    *results, manifest = sorted(path.rpartition("/")[2] for path in files.find(root))
    assert results == ["0.png", "1.png"] and re.fullmatch(r"eam_batch-000001-[0-9a-f]{8}\.jsonl", manifest)
    # Again: what is done is left, what failed is tried again.
    status, out, err = batch(capsys, source, target, *options)
    assert (status, out) == (1, "") and "2 of 3 pictures were finished before" in err
    refused(batch(capsys, source, target, *options, "--seed", "5"), "seed 0", "got config seed 5", "--overwrite")
    files.rm_file(f"{source.removeprefix('memory:/')}/10.png")
    assert batch(capsys, source, target, *options, "--seed", "5", "--overwrite")[0] == 0


def test_store_is_used_by_one_batch_at_a_time(store):
    _, _, target = store
    folder = open_folder(target)
    with locked(folder, lease=0.6) as lock:
        with pytest.raises(FolderError, match="no other batch"), locked(folder, lease=0.6):
            pass
        lock.check()
    assert folder.peek(LOCK) is None
    # What a killed driver left is nobody's once it has not changed for a lease.
    folder.write(LOCK, b'{"owner": "gone", "beats": 7}')
    with locked(folder, lease=0.3):
        pass
    with locked(folder, lease=0.3) as lock:
        folder.write(LOCK, b'{"owner": "another"}')
        with pytest.raises(FolderError, match="took it over"):
            for _ in range(200):
                lock.check()
                time.sleep(0.01)


def test_a_drive_without_locks_is_used_by_one_batch_at_a_time(tmp_path, monkeypatch):
    def none(file):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(file_lock, "_take", none)
    folder = open_folder(str(tmp_path))
    with locked(folder, lease=0.6) as lock:
        assert b"beats" in folder.peek(LOCK)
        with pytest.raises(FolderError, match="no other batch"), locked(folder, lease=0.6):
            pass
        lock.check()
    assert folder.peek(LOCK) is None


def test_a_lock_that_cannot_be_opened_is_no_lock(tmp_path, monkeypatch):
    def refuse(path, mode="r", *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder = open_folder(str(tmp_path))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FolderError, match=f"{LOCK}.*Permission denied"), locked(folder):
        pass


def test_what_cannot_work_is_refused_in_one_sentence(tmp_path, capsys):
    folder = make_pictures(tmp_path / "in", 1)
    refused(batch(capsys, tmp_path / "none", tmp_path / "out"), "none", "check its name")
    refused(batch(capsys, folder, folder), "apart from the input's")
    refused(batch(capsys, folder, folder / "out", "--subfolders"), "apart from the input's")
    refused(batch(capsys, folder, tmp_path / "a" / "b"), "could not")
    refused(batch(capsys, folder, "nosuch://bucket/x"), "nosuch://bucket/x", "fsspec")
    refused(batch(capsys, folder, tmp_path / "out", "--num-workers", "-1"), "num-workers")
    if not _has("s3fs"):
        refused(batch(capsys, folder, "s3://bucket/x"), "s3fs")
    if not _has("ray"):
        refused(batch(capsys, folder, tmp_path / "out", "--engine", "ray"), "pip install ray")
    assert not (tmp_path / "a").exists()


def _has(package):
    return bool(importlib.util.find_spec(package))


@pytest.mark.parametrize("name", [MANIFEST, LOCK])
def test_links_and_pipes_under_the_names_of_the_batch_are_refused(tmp_path, capsys, name):
    source, output = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    output.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (output / name).symlink_to(victim)
    refused(batch(capsys, source, output), name, "plain file")
    (output / name).unlink()
    os.mkfifo(output / name)
    refused(batch(capsys, source, output), name, "plain file")
    assert victim.read_text() == "mine"
