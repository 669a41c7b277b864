"""Drives that fail under a folder's pass: no picture is lost or done twice, and the next pass goes on."""

import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_drive import FaultyDrive
from PIL import Image

from eam_core import folder_report
from eam_core.errors import DiskError, EAMError, FolderError, ImageError
from eam_core.folder_batch import Batch, BatchSettings
from eam_core.folder_names import Saver
from eam_core.folder_report import REPORT_NAME
from eam_core.images import Picture, load_image

NAMES = ["1.png", "2.png", "3.png"]
EVERY = 1 if os.environ.get("EAM_SLOW") else 2


def settings(tmp_path: Path, **changes) -> BatchSettings:
    (tmp_path / "in").mkdir(exist_ok=True)
    for number, name in enumerate(NAMES):
        if not (tmp_path / "in" / name).exists():
            Image.fromarray(np.full((16, 20, 3), 50 * number, np.uint8)).save(tmp_path / "in" / name)
    places = {"folder": tmp_path / "in", "output": tmp_path / "out", "source": "in", "savers": (Saver(key="0"),)}
    return BatchSettings(**places | changes)


def go_through(batch: Batch, done: list[str], sentences: list[str]) -> None:
    """Take and save what is left, as EAM Load Folder and EAM Save Folder do; stop where they do."""
    while work := batch.pick():
        try:
            picture = batch.load(work)
        except ImageError as error:
            sentences.append(str(error))
            batch.fail(work, str(error))
            continue
        except FolderError:
            batch.settle(work, "interrupted")
            raise
        try:
            if batch.save(work, "0", [picture], {}):
                done.append(work.name)
        except EAMError as error:
            sentences.append(str(error))
            batch.settle(work, "failed", str(error))
        if batch.stopped:
            return


def results(tmp_path: Path) -> list[str]:
    """Name the results, each of which must be whole and its own picture's."""
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".png")
    for name in names:
        torch.testing.assert_close(load_image(tmp_path / "out" / name).rgb, load_image(tmp_path / "in" / name).rgb)
    return names


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_whichever_touch_of_the_drive_fails(tmp_path: Path, monkeypatch, overwrite: bool, for_good: bool) -> None:
    """The same pass goes on where it was, or a new one does; every picture comes out, once unless its file was lost."""
    chosen = settings(tmp_path, overwrite=overwrite)
    drive = FaultyDrive(monkeypatch, tmp_path)
    touches = drive.count(lambda: go_through(Batch(chosen), [], []))
    assert touches > 40
    for at in range(0, touches, EVERY):
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        done, sentences, batch = [], [], None
        drive.fail(at, errno.ESTALE if for_good else errno.EIO, for_good=for_good)
        try:
            batch = Batch(chosen)
            go_through(batch, done, sentences)
        except EAMError as error:
            sentences.append(str(error))
        drive.work()
        assert set(done) <= set(results(tmp_path)) and all("\n" not in one for one in sentences)
        if overwrite and batch:
            batch.resume()
        else:
            batch = Batch(chosen)
        go_through(batch, done, [])
        assert results(tmp_path) == NAMES and batch.progress() == "3 of 3", f"touch {at}"
        assert len(done) == len(set(done)), f"touch {at}: a picture was saved twice"


def test_a_report_that_cannot_be_written_costs_no_picture(tmp_path: Path, monkeypatch) -> None:
    batch = Batch(settings(tmp_path, overwrite=True))
    add = batch.report.add

    def full(state: str, name: str = "", **fields) -> None:
        if name == "2.png":
            raise DiskError("no space")
        add(state, name, **fields)

    monkeypatch.setattr(batch.report, "add", full)
    done: list[str] = []
    with pytest.raises(DiskError):
        go_through(batch, done, [])
    monkeypatch.undo()
    batch.resume()
    go_through(batch, done, [])
    assert done == NAMES and batch.progress() == "3 of 3"


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    """Without savers the lines are all that tells what is done."""
    batch = Batch(settings(tmp_path, savers=()))
    batch.settle(batch.pick(), "success")
    work = batch.pick()
    with (tmp_path / "out" / REPORT_NAME).open("ab") as file:
        file.write(b'{"time": "2026-01-01", "fol')  # the disk was full there
    batch.settle(work, "success")
    batch.settle(batch.pick(), "success")
    again = Batch(settings(tmp_path, savers=()))
    assert again.pick() is None and again.progress() == "3 of 3"


def test_a_folder_that_is_gone_fails_no_picture(tmp_path: Path) -> None:
    """A drive that is gone would otherwise fail every picture that is left, in a moment."""
    batch = Batch(settings(tmp_path, overwrite=True))
    done: list[str] = []
    (tmp_path / "in").rename(tmp_path / "away")
    (tmp_path / "in").mkdir()  # what lies under the place of a drive
    with pytest.raises(FolderError, match=r"^in: expected the folder of pictures to stay, but it is gone or empty; "):
        go_through(batch, done, [])
    assert not batch.failed and batch.stopped and len(batch.left) == 3
    (tmp_path / "in").rmdir()
    (tmp_path / "away").rename(tmp_path / "in")
    batch.resume()
    go_through(batch, done, [])
    assert done == NAMES


def test_an_output_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    batch = Batch(settings(tmp_path))
    work = batch.pick()
    (tmp_path / "out").rename(tmp_path / "away")
    with pytest.raises(DiskError, match="could not"):
        batch.save(work, "0", [Picture(rgb=torch.zeros(1, 3, 16, 20))], {})
    assert batch.stopped and not (tmp_path / "out").exists()
    (tmp_path / "away").rename(tmp_path / "out")
    done: list[str] = []
    go_through(Batch(settings(tmp_path)), done, [])
    assert done == NAMES


def test_lost_permission_stops_but_one_locked_file_does_not(tmp_path: Path, monkeypatch) -> None:
    replace = os.replace

    def denied(part, path) -> None:
        if Path(path).name == "2.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(part, path)

    monkeypatch.setattr(os, "replace", denied)
    done, sentences = [], []
    batch = Batch(settings(tmp_path))
    go_through(batch, done, sentences)
    assert done == ["1.png", "3.png"] and not batch.stopped and len(sentences) == 1
    monkeypatch.setattr("eam_core.folder_results.can_write", lambda folder: False)
    batch = Batch(settings(tmp_path))
    go_through(batch, done, sentences)
    assert "Permission denied" in batch.stopped


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    """Times of day are written down and never read; durations come from the clock that only goes forward."""
    jumps = iter([0, 10**9, -(10**9), 5 * 10**8] * 20)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + next(jumps))

    class Jumping(folder_report.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(1.7e9 + next(jumps), tz)

    monkeypatch.setattr(folder_report, "datetime", Jumping)
    done: list[str] = []
    batch = Batch(settings(tmp_path))
    work = batch.pick()
    batch.save(work, "0", [batch.load(work)], {})
    go_through(Batch(settings(tmp_path)), done, [])
    assert done == NAMES[1:] and results(tmp_path) == NAMES
    lines = [json.loads(text) for text in (tmp_path / "out" / REPORT_NAME).read_text().splitlines()]
    assert all(0 <= line["seconds"] < 60 for line in lines if "seconds" in line)
    assert [line["time"] for line in lines] != sorted(line["time"] for line in lines), "the clock did not jump"
