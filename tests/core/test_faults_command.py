"""Drives that fail under `upscale`: one sentence each, nothing half written, and the next run works."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import pixels, write
from faulty_drive import FaultyDrive
from PIL import Image

from eam_core import cli, images
from eam_core.errors import EAMError

SAYS = ("error: ", "skipped: ", "stopped: ")
EVERY = 1 if os.environ.get("EAM_SLOW") else 3


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "in").mkdir()
    for name in ("1.png", "2.png", "3.png"):
        write(tmp_path / "in" / name)
    return tmp_path / "in", tmp_path / "out"


@pytest.fixture
def loaded(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is there already: these tests are about pictures."""
    restorer = tiny.restorer()
    monkeypatch.setattr(cli, "load_restorer", lambda args, config: restorer)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def one_sentence_each(err: str) -> None:
    lines = err.splitlines()
    assert lines and all(line.startswith(SAYS) for line in lines), err


@pytest.mark.parametrize("for_good", [False, True])
def test_whichever_touch_of_the_drive_fails(folders, loaded, upscale, tmp_path, monkeypatch, for_good: bool) -> None:
    source, target = folders
    drive = FaultyDrive(monkeypatch, tmp_path)
    touches = drive.count(lambda: upscale(source, target, options=[]))
    inputs, untroubled = files(source), files(target)
    assert len(untroubled) == 3 and touches > 20
    for at in range(0, touches, EVERY):
        for path in target.iterdir():
            path.unlink()
        drive.fail(at, errno.ESTALE if for_good else errno.EIO, for_good=for_good)
        status, out, err = upscale(source, target, options=[])
        drive.work()
        if status:
            one_sentence_each(err)
        got = {name: data for name, data in files(target).items() if not name.endswith(".part")}
        assert got.items() <= untroubled.items() and files(source) == inputs
        assert for_good or len(got) == len(files(target)), "half a file is left"
        assert status in (0, 1, 2) and len(got) == out.count(" x ") and (len(got) == 3) == (status == 0)
    assert upscale(source, target, options=[])[0] == 0
    assert {name: data for name, data in files(target).items() if not name.endswith(".part")} == untroubled


def test_a_full_disk_ends_the_run_at_once(folders, loaded, upscale, monkeypatch) -> None:
    """What could not be saved would cost hours of restoring."""
    source, target = folders
    synced = []

    def full(handle: int) -> None:
        synced.append(handle)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, out, err = upscale(source, target, options=[])
    assert (status, out, len(synced)) == (1, "", 1)
    first, second, third = err.splitlines()
    assert first.startswith(f"skipped: {target / '1.png'}: expected to write") and "No space left on device" in first
    assert second == "stopped: the same holds for the other 2, which are left out; mend it and run again"
    assert third == "error: 3 of 3 pictures were not restored, see above"
    assert files(target) == {}


def test_a_folder_that_vanishes_is_not_made_anew(folders, loaded, upscale, monkeypatch) -> None:
    """Below the place of a lost drive, results would lie on the wrong one."""
    source, target = folders
    save = images.save_image

    def lose(picture, path):
        save(picture, path)
        target.rename(target.with_name("away"))

    monkeypatch.setattr(images, "save_image", lose)
    status, out, err = upscale(source, target, options=[])
    assert status == 1 and out.count(" x ") == 1 and not target.exists()
    one_sentence_each(err)
    assert "stopped: the same holds for the other 1" in err
    monkeypatch.setattr(images, "save_image", save)
    target.with_name("away").rename(target)
    assert upscale(source, target, options=[])[0] == 0


def test_inputs_that_vanish_end_the_run(folders, loaded, upscale, monkeypatch) -> None:
    source, target = folders
    restore = cli._upscale_one

    def lose(*args):
        restore(*args)
        source.rename(source.with_name("away"))

    monkeypatch.setattr(cli, "_upscale_one", lose)
    status, out, err = upscale(source, target, options=[])
    assert status == 1 and out.count(" x ") == 1
    assert [line.split(":")[0] for line in err.splitlines()] == ["skipped", "stopped", "error"]
    assert "found no such file" in err


def test_a_limit_of_the_system_on_files(folders, loaded, upscale) -> None:
    """Really half written: the system takes no more of the second picture than the limit."""
    resource = pytest.importorskip("resource")
    source, target = folders
    Image.fromarray(pixels(64, 64)).save(source / "2.png")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7_000, before[1]))
    try:
        status, _, err = upscale(source, target, options=[])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1
    one_sentence_each(err)
    assert f"skipped: {target / '2.png'}: expected to write" in err and "File too large" in err
    assert sorted(files(target)) == ["1.png", "3.png"]
    for path in target.iterdir():
        Image.open(path).load()
    assert upscale(source, target, options=[])[0] == 0
    assert sorted(files(target)) == ["1.png", "2.png", "3.png"]


def test_two_at_once_on_one_output_folder(folders, loaded, upscale, monkeypatch) -> None:
    """Between the halves of each writing, another process writes the same file; it stays whole."""
    source, target = folders
    upscale(source, target, options=[])
    alone = files(target)
    replace = os.replace
    script = "import sys; from eam_core.whole_file import write_whole; from pathlib import Path\n"
    script += "for line in sys.stdin: write_whole(Path(line.strip()), b'other'); print(flush=True)"
    command = [sys.executable, "-P", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as other:

        def raced(part, path) -> None:
            other.stdin.write(f"{path}\n")
            other.stdout.readline()
            assert Path(path).read_bytes() == b"other"
            replace(part, path)

        monkeypatch.setattr(os, "replace", raced)
        assert upscale(source, target, options=[])[0] == 0
        other.stdin.close()
    assert files(target) == alone


# Weights


@pytest.mark.parametrize("for_good", [False, True])
def test_weights_that_vanish_while_they_are_read(folders, upscale, tiny_files, monkeypatch, for_good: bool) -> None:
    source, target = folders
    drive = FaultyDrive(monkeypatch, tiny_files.base.parent)
    touches = drive.count(lambda: upscale(source / "1.png", target / "1.png"))
    assert touches > 8
    (target / "1.png").unlink()
    failed = tried = 0
    for at in range(0, touches, EVERY):
        drive.fail(at, errno.ENOENT if at % 2 else errno.ESTALE, for_good=for_good)
        status, out, err = upscale(source / "1.png", target / "1.png")
        drive.work()
        assert (status, out, files(target)) == (2, "", {}) or status == 0, err
        tried, failed = tried + 1, failed + (status == 2)
        if status == 2:
            assert len(err.splitlines()) == 1 and err.startswith("error: ") and "expected" in err, err
        else:
            (target / "1.png").unlink()
    assert failed > tried / 2
    assert upscale(source / "1.png", target / "1.png")[0] == 0


def test_other_errors_of_the_system_are_one_sentence_too(folders, upscale, monkeypatch) -> None:
    def lost(*_):
        raise OSError(errno.EHOSTDOWN, "Host is down", "/mnt/photos")

    monkeypatch.setattr("eam_core.jobs.pair_files", lost)
    status, _, err = upscale(*folders)
    expected = "error: expected files that can be read and written, got Host is down at /mnt/photos; check its drive\n"
    assert (status, err) == (2, expected)
    assert not issubclass(OSError, EAMError)
