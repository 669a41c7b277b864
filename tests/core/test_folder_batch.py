"""Folders of pictures: which are listed, what results are called, what is left after a stop, what the report says."""

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
from eam_core.folder_names import Saver, list_pictures, target_names
from eam_core.folder_report import REPORT_NAME, Report
from eam_core.images import Picture, load_image

PICTURE = Picture(rgb=torch.full((1, 3, 16, 20), 0.5))


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 20, 3), 90, np.uint8)).save(path)
    return folder


def settings(tmp_path: Path, *suffixes: str, **changes) -> BatchSettings:
    savers = tuple(Saver(key=str(number), suffix=suffix) for number, suffix in enumerate(suffixes))
    places = {"folder": tmp_path / "in", "output": tmp_path / "out", "source": "in"}
    return BatchSettings(**places | {"savers": savers} | changes)


def lines(tmp_path: Path) -> list[dict]:
    return [json.loads(text) for text in (tmp_path / "out" / REPORT_NAME).read_text().splitlines()]


def run(batch: Batch, count: int = 1000) -> list[str]:
    """Save the next `count` pictures with every saver; return their names."""
    names = []
    while len(names) < count and (work := batch.pick()):
        picture = batch.load(work)
        for key in work.targets:
            batch.save(work, key, [picture], {})
        names.append(work.name)
    return names


# Listing


def test_natural_order_globs_and_subfolders(tmp_path: Path) -> None:
    make(tmp_path, "p10.png", "p2.png", "P1.JPG", "b/2.png", "b/10.png", ".hidden.png", ".cache/1.png")
    (tmp_path / "notes.txt").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    assert list_pictures(tmp_path) == ["P1.JPG", "p2.png", "p10.png"]
    assert list_pictures(tmp_path, subfolders=True) == ["b/2.png", "b/10.png", "P1.JPG", "p2.png", "p10.png"]
    assert list_pictures(tmp_path, "*.jpg; p?.png") == ["P1.JPG", "p2.png"]
    assert list_pictures(tmp_path, "b/*", subfolders=True) == ["b/2.png", "b/10.png"]
    with pytest.raises(FolderError, match=r"match '\*.webp', found none among 3; change the pattern"):
        list_pictures(tmp_path, "*.webp")


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert list_pictures(tmp_path / "in", subfolders=True) == ["a.png"]


def test_ten_thousand_pictures_are_quick(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(10_000):
        (tmp_path / "in" / f"{number}.png").touch()
    (tmp_path / "out").mkdir()
    for number in range(500):
        (tmp_path / "out" / f"{number}.png").touch()
    began = time.perf_counter()
    batch = Batch(settings(tmp_path, ""))
    begun = time.perf_counter() - began
    began = time.perf_counter()
    picks = [batch.pick().name for _ in range(20)]
    picking = time.perf_counter() - began
    assert picks == [f"{number}.png" for number in range(500, 520)]
    assert batch.progress() == "500 of 10000"
    assert begun < 5 and picking < 1


# Names of results


@pytest.mark.parametrize(
    ("pictures", "format", "expected"),
    [
        (["a.jpg", "b.tif", "c.GIF"], "as input", ["a.jpg", "b.png", "c.png"]),
        (["a.jpg", "b.tif"], "webp", ["a.webp", "b.webp"]),
        (["a.jpg", "a.png"], "png", ["a_jpg.png", "a.png"]),
        (["a.jpg", "a.tif"], "png", ["a_jpg.png", "a_tif.png"]),
        (["a.bmp", "a.png", "a_bmp.png"], "as input", ["a_bmp_2.png", "a.png", "a_bmp.png"]),
        (["a.PNG", "a.png"], "as input", ["a.PNG", "a_png.png"]),
        (["x/a.jpg", "a.png"], "png", ["x/a.png", "a.png"]),
    ],
)
def test_names_are_kept_and_never_shared(pictures: list[str], format, expected: list[str]) -> None:
    names = target_names(pictures, [Saver(key="1", format=format)])
    assert [names[picture] for picture in pictures] == [(name,) for name in expected]


def test_names_of_several_savers() -> None:
    both = [Saver(key="1"), Saver(key="2", suffix="_x")]
    assert target_names(["a.png", "a_x.png"], both) == {
        "a.png": ("a.png", "a_x_png.png"),
        "a_x.png": ("a_x.png", "a_x_x.png"),
    }
    suffixed = [Saver(key="1", format="png", suffix="_x")]
    assert target_names(["a.jpg", "a.png"], suffixed) == {"a.jpg": ("a_x_jpg.png",), "a.png": ("a_x.png",)}
    with pytest.raises(FolderError, match=r"a.png: expected one EAM Save Folder .* got two; give one a suffix"):
        target_names(["a.png"], [Saver(key="1"), Saver(key="2", format="png")])


# Going through a folder


def test_each_picture_once_and_resume(tmp_path: Path) -> None:
    make(tmp_path / "in", *(f"{number}.png" for number in range(1, 13)))
    assert run(Batch(settings(tmp_path, "")), count=5) == ["1.png", "2.png", "3.png", "4.png", "5.png"]
    batch = Batch(settings(tmp_path, ""))
    assert batch.progress() == "5 of 12"
    assert run(batch) == [f"{number}.png" for number in range(6, 13)]
    assert Batch(settings(tmp_path, "")).pick() is None
    assert run(Batch(settings(tmp_path, "", overwrite=True))) == [f"{number}.png" for number in range(1, 13)]
    states = [line["state"] for line in lines(tmp_path)]
    assert states[:4] == ["started", "begun", "done", "begun"]
    done = next(line for line in lines(tmp_path) if line["state"] == "done")
    assert (done["name"], done["files"], done["folder"]) == ("1.png", ["1.png"], "in") and done["seconds"] >= 0


def test_a_picture_is_finished_with_its_last_result(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.png")
    batch = Batch(settings(tmp_path, "", "_x"))
    work = batch.pick()
    batch.save(work, "0", [PICTURE], {})
    assert not batch.finished
    assert run(Batch(settings(tmp_path, "", "_x"))) == ["a.png"]
    batch.save(work, "1", [PICTURE], {})
    assert batch.finished == {"a.png"}


def test_results_that_exist_are_kept(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.png")
    batch = Batch(settings(tmp_path, "", "_x"))
    work = batch.pick()
    (tmp_path / "out" / "a.png").write_text("of another program")
    assert batch.save(work, "0", [PICTURE], {}) == []
    assert (tmp_path / "out" / "a.png").read_text() == "of another program"
    batch = Batch(settings(tmp_path, "", overwrite=True))
    assert batch.save(batch.pick(), "0", [PICTURE], {}) == ["a.png"]
    assert load_image(tmp_path / "out" / "a.png").rgb.shape[-2:] == (16, 20)


def test_batches_get_numbers_that_nothing_else_has(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.png", "a_2.png")
    batch = Batch(settings(tmp_path, ""))
    work = batch.pick()
    assert batch.save(work, "0", [PICTURE] * 3, {}) == ["a.png", "a_3.png", "a_4.png"]
    assert batch.save(work, "0", [PICTURE], {}) == ["a_5.png"]
    assert run(batch) == ["a_2.png"]


def test_what_runs_came_to(tmp_path: Path) -> None:
    make(tmp_path / "in", "1.png", "2.png", "3.png", "4.png")
    batch = Batch(settings(tmp_path, ""))
    first, second, third = batch.pick(), batch.pick(), batch.pick()
    batch.save(first, "0", [PICTURE], {})
    batch.settle(first, "failed", "another branch")
    batch.settle(second, "failed", "ImageScale: too small")
    batch.settle(third, "interrupted")
    assert batch.progress() == "1 of 4, 1 failed"
    assert run(batch, count=1) == ["3.png"]
    batch.settle(batch.pick(), "success")
    assert batch.failed == {"2.png": "ImageScale: too small", "4.png": "its run ended without saving it"}
    assert batch.pick() is None
    assert batch.summary() == "Finished: 2 of 4, 2 failed; eam_folder.jsonl in the output folder says why."
    failed = [line for line in lines(tmp_path) if line["state"] == "failed"]
    assert [(line["name"], line["error"]) for line in failed] == list(batch.failed.items())
    # Queued again, what failed is tried again.
    assert run(Batch(settings(tmp_path, ""))) == ["2.png", "4.png"]


def test_without_savers_the_report_says_what_is_done(tmp_path: Path) -> None:
    make(tmp_path / "in", "1.png", "2.png", "3.png")
    batch = Batch(settings(tmp_path))
    batch.settle(batch.pick(), "success")
    batch.settle(batch.pick(), "failed", "no")
    with (tmp_path / "out" / REPORT_NAME).open("a") as file:
        file.write('{"state": "done", "na')  # killed while it wrote
    batch = Batch(settings(tmp_path))
    assert (batch.pick().name, batch.pick().name) == ("2.png", "3.png")
    assert lines_after_half_a_line(tmp_path)[-1]["name"] == "3.png"
    assert Batch(settings(tmp_path, source="another")).pick().name == "1.png"


def lines_after_half_a_line(tmp_path: Path) -> list[dict]:
    texts = (tmp_path / "out" / REPORT_NAME).read_text().splitlines()
    return [json.loads(text) for text in texts if text.endswith("}")]


# Bad input


def test_bad_files_are_refused_one_by_one(tmp_path: Path) -> None:
    make(tmp_path / "in", "1.png", "5.png")
    make(tmp_path / "elsewhere", "secret.png")
    (tmp_path / "in" / "2.png").write_text("no picture")
    (tmp_path / "in" / "3.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    make(tmp_path / "in", "4.png")
    batch = Batch(settings(tmp_path, ""))
    (tmp_path / "in" / "4.png").unlink()
    batch.load(batch.pick())
    for message in ("got something else or a damaged file", "a link that leads outside", "found no such file"):
        with pytest.raises(ImageError, match=message):
            batch.load(batch.pick())
    assert batch.load(batch.pick()).rgb.shape[-2:] == (16, 20)
    allowed = Batch(settings(tmp_path, "", pattern="3*", readable=(tmp_path / "elsewhere",)))
    assert allowed.load(allowed.pick()).rgb.shape[-2:] == (16, 20)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    make(tmp_path / "in", "1.png")
    with pytest.raises(FolderError, match="expected a folder of pictures, found none there"):
        settings(tmp_path, folder=tmp_path / "missing")
    for changes in ({"output": tmp_path / "in"}, {"output": tmp_path / "in" / "out", "subfolders": True}):
        with pytest.raises(FolderError, match="expected an output folder apart from the input's"):
            settings(tmp_path, **changes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FolderError, match=r"empty: expected a folder with pictures .* found none; check the path"):
        Batch(settings(tmp_path, folder=tmp_path / "empty"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", Path("/proc/self/out")):  # neither can be written, not even by root
        with pytest.raises(DiskError, match="expected an output folder that can be written"):
            Batch(settings(tmp_path, output=output))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / REPORT_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FolderError, match="expected a plain file"):
        Report(tmp_path / "out", "in")


def test_results_stay_in_the_output_folder(tmp_path: Path) -> None:
    make(tmp_path / "in", "sub/1.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    batch = Batch(settings(tmp_path, "", subfolders=True))
    with pytest.raises(FolderError, match="a link that leads outside"):
        batch.save(batch.pick(), "0", [PICTURE], {})
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_full_disk_stops_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "in", "1.png")
    batch = Batch(settings(tmp_path, ""))
    work = batch.pick()

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        batch.save(work, "0", [PICTURE], {})
    assert "No space left" in batch.stopped
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [REPORT_NAME]
