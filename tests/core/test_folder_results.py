"""Results that are there already: whose they are, which names are free, and which failures stop a folder."""

import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eam_core.errors import DiskError, FolderError, ImageError
from eam_core.folder_batch import Batch, BatchSettings
from eam_core.folder_names import Saver
from eam_core.folder_report import REPORT_NAME, Report, source_name
from eam_core.images import Picture

PICTURE = Picture(rgb=torch.full((1, 3, 16, 20), 0.5))
NAMES = ("1.png", "2.png", "3.png")


def batch(tmp_path: Path, source: str, *pictures: str, format="as input", suffix: str = "", **changes) -> Batch:
    """Begin a pass over a folder after adding pictures to it; results go to "out"."""
    folder = tmp_path / source.strip("./")
    folder.mkdir(exist_ok=True)
    for name in pictures:
        Image.fromarray(np.full((16, 20, 3), 90, np.uint8)).save(folder / name)
    savers = (Saver(key="0", format=format, suffix=suffix),)
    return Batch(BatchSettings(folder=folder, output=tmp_path / "out", source=source, savers=savers, **changes))


def run(batch: Batch, count: int = 1000, copies: int = 1) -> list[str]:
    """Save the next `count` pictures; return their files."""
    files = []
    while count and (work := batch.pick()):
        files += batch.save(work, "0", [PICTURE] * copies, {})
        count -= 1
    return files


def report(tmp_path: Path) -> list[dict]:
    return [json.loads(text) for text in (tmp_path / "out" / REPORT_NAME).read_text().splitlines()]


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_folder_neither_counts_nor_is_replaced(tmp_path: Path, overwrite: bool) -> None:
    assert run(batch(tmp_path, "a", *NAMES)) == [*NAMES]
    before = (tmp_path / "out" / "1.png").stat().st_mtime_ns
    problem = r"1.png: expected .* holds that of 1.png of folder 'a'; choose another output_folder$"
    with pytest.raises(FolderError, match=problem):
        batch(tmp_path, "b", *NAMES, overwrite=overwrite)
    assert (tmp_path / "out" / "1.png").stat().st_mtime_ns == before
    # Under other names they get along, and where the results were removed.
    assert run(batch(tmp_path, "b", suffix="_b")) == ["1_b.png", "2_b.png", "3_b.png"]
    for name in NAMES:
        (tmp_path / "out" / name).unlink()
    assert run(batch(tmp_path, "b")) == [*NAMES]


def test_two_passes_that_began_together(tmp_path: Path) -> None:
    first, second = batch(tmp_path, "a", *NAMES), batch(tmp_path, "b", *NAMES)
    assert run(first, count=1) == ["1.png"]
    with pytest.raises(FolderError, match=r"holds that of 1.png of folder 'a'"):
        second.pick()
    overwriting = batch(tmp_path, "b", "9.png", pattern="9*", overwrite=True)
    work = overwriting.pick()
    run(batch(tmp_path, "a", "9.png"))
    with pytest.raises(FolderError, match=r"holds that of 9.png of folder 'a'"):
        overwriting.save(work, "0", [PICTURE], {})


def test_a_picture_that_was_added_later(tmp_path: Path) -> None:
    assert run(batch(tmp_path, "a", "x.tif", format="png")) == ["x.png"]
    with pytest.raises(FolderError, match=r"x.png: expected .* result of x.png alone, but .* that of x.tif of folder"):
        batch(tmp_path, "a", "x.png", format="png")


def test_the_same_folder_under_another_spelling_goes_on(tmp_path: Path) -> None:
    run(batch(tmp_path, "a", *NAMES), count=2)
    assert batch(tmp_path, "./a/").progress() == "2 of 3"
    assert source_name(".\\a/b\\") == "a/b" != source_name("/a/b") == "/a/b"
    assert source_name(" . ") == source_name("") == "input"


def test_results_of_one_saver_have_an_owner_before_the_picture_is_done(tmp_path: Path) -> None:
    batch(tmp_path, "a", "1.png")
    both = (Saver(key="0"), Saver(key="1", suffix="_x"))
    begun = Batch(BatchSettings(folder=tmp_path / "a", output=tmp_path / "out", source="a", savers=both))
    begun.save(begun.pick(), "0", [PICTURE], {})
    with pytest.raises(FolderError, match=r"holds that of 1.png of folder 'a'"):
        batch(tmp_path, "b", "1.png")


def test_reports_of_long_folders_are_read_quickly(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    keeper = Report(tmp_path / "out", "a")
    line = {"time": "2026-01-01T00:00:00.000+00:00", "folder": "a", "state": "done", "seconds": 1.0}
    texts = [json.dumps(line | {"name": f"{n}.png", "files": [f"{n}.png"]}) for n in range(10_000)]
    keeper.path.write_text("\n".join([*texts, '[1, "no line of ours"]', '{"name": 3}', '{"state": "do']))
    began = time.perf_counter()
    keeper.catch_up()
    assert len(keeper.done()) == 10_000 and keeper.owner("77.PNG") == ("a", "77.png")
    assert time.perf_counter() - began < 1
    began = time.perf_counter()
    for _ in range(1000):
        keeper.catch_up()
    assert time.perf_counter() - began < 1
    # What others add is read without what was there, half a line only when it is whole.
    with keeper.path.open("a") as file:
        file.write('ne", "folder": "b/", "name": "x.png", "files": ["77.png"]}\n')
    keeper.catch_up()
    assert keeper.owner("77.png") == ("b", "x.png") and len(keeper.done()) == 10_000
    keeper.path.unlink()
    keeper.catch_up()
    assert keeper.owner("77.png") is None and not keeper.done()


@pytest.mark.parametrize("overwrite", [False, True])
def test_further_results_of_a_batch_replace_nothing(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_2.PNG").write_text("of another program")
    made = run(batch(tmp_path, "a", "a.png", overwrite=overwrite), copies=3)
    assert made == ["a.png", "a_3.png", "a_4.png"]
    assert (tmp_path / "out" / "a_2.PNG").read_text() == "of another program"
    # Its own are made again under their names.
    assert run(batch(tmp_path, "a", overwrite=True), copies=3) == made


def test_an_empty_batch_is_no_result(tmp_path: Path) -> None:
    begun = batch(tmp_path, "a", "1.png")
    work = begun.pick()
    with pytest.raises(ImageError, match=r"1.png: expected at least one result, got an empty batch; check"):
        begun.save(work, "0", [], {})
    begun.settle(work, "failed", "empty")
    assert begun.progress() == "0 of 1, 1 failed" and not [line for line in report(tmp_path) if line["state"] == "done"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_one_file_that_is_denied_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    begun = batch(tmp_path, "a", *NAMES, overwrite=True)
    replace = os.replace

    def locked(source, target) -> None:
        if Path(target).name == "1.png":
            raise OSError(code, os.strerror(code))
        replace(source, target)

    def denied(self, *arguments, **named) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", locked)
    work = begun.pick()
    with pytest.raises(DiskError):
        begun.save(work, "0", [PICTURE], {})
    assert begun.stopped == ""
    begun.settle(work, "failed", "locked")
    assert run(begun) == ["2.png", "3.png"] and begun.progress() == "2 of 3, 1 failed"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["2.png", "3.png", REPORT_NAME]
    # Nothing can be written there any more.
    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(DiskError):
        begun.save(work, "0", [PICTURE], {})
    assert os.strerror(code) in begun.stopped


def test_a_stopped_pass_goes_on_with_what_is_left_and_what_failed(tmp_path: Path) -> None:
    begun = batch(tmp_path, "a", *NAMES, "4.png", overwrite=True)
    assert run(begun, count=1) == ["1.png"]
    begun.settle(begun.pick(), "failed", "no space")
    begun.settle(begun.pick(), "interrupted")
    begun.stopped = "no space"
    begun.resume()
    assert (begun.stopped, begun.progress()) == ("", "1 of 4")
    assert run(begun) == ["2.png", "3.png", "4.png"]
