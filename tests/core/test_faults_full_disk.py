"""A disk that is really full: a small one of memory, where this system lets a test mount one."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import pixels
from PIL import Image

from eam_core import cli
from eam_core.errors import DiskError
from eam_core.folder_batch import Batch, BatchSettings
from eam_core.folder_names import Saver
from eam_core.images import Picture, load_image
from eam_core.weight_files import save_weights

NAMES = ["1.png", "2.png", "3.png"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here ({error})")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number, name in enumerate(NAMES):
        Image.fromarray(pixels(80, 80, seed=number)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes of the disk."""
    filler = disk / "filler"
    filler.write_bytes(bytes(64 * 1024 - left))
    return filler


def test_upscale_stops_and_the_next_run_works(small_disk, source, tiny, upscale, monkeypatch) -> None:
    restorer = tiny.restorer()
    monkeypatch.setattr(cli, "load_restorer", lambda args, config: restorer)
    monkeypatch.setattr("eam_core.jobs.check_room", lambda *_: None)  # somebody else fills the disk after that
    (small_disk / "out").mkdir()
    filler = fill(small_disk, 16 * 1024)
    status, out, err = upscale(source, small_disk / "out", options=[])
    assert (status, out) == (1, "")
    assert [line.split(":")[0] for line in err.splitlines()] == ["skipped", "stopped", "error"]
    assert "(No space left on device) and left nothing behind; free some space" in err
    assert not list((small_disk / "out").iterdir())
    filler.unlink()
    assert upscale(source / "1.png", small_disk / "out", options=[])[0] == 0
    assert load_image(small_disk / "out" / "1.png").rgb.shape[-2:] == (160, 160)


def test_a_pass_stops_and_goes_on_where_it_was(small_disk, source) -> None:
    settings = BatchSettings(folder=source, output=small_disk / "out", source="in", savers=(Saver(key="0"),))
    small = Picture(rgb=torch.zeros(1, 3, 16, 16))
    noise = Picture(rgb=torch.rand(1, 3, 128, 128))
    batch = Batch(settings)
    assert batch.save(batch.pick(), "0", [small], {}) == ["1.png"]
    filler, work = fill(small_disk, 16 * 1024), batch.pick()
    with pytest.raises(DiskError, match=r"2.png: expected to write \d+ bytes, could not \(No space left on device\)"):
        batch.save(work, "0", [noise], {})
    assert "No space left" in batch.stopped
    assert {path.name for path in (small_disk / "out").iterdir()} == {"1.png", "eam_folder.jsonl"}
    # Not even a line of the report has room.
    filler.write_bytes(bytes(64 * 1024 - 8 * 1024))
    with pytest.raises(DiskError, match="expected to add a line to the report, could not"):
        for _ in range(1000):
            batch.report.add("begun", "x" * 500)
    filler.unlink()
    batch = Batch(settings)
    assert batch.progress() == "1 of 3"
    assert [batch.save(batch.pick(), "0", [small], {}) for _ in "23"] == [["2.png"], ["3.png"]]
    assert Batch(settings).finished == set(NAMES)


def test_weights_are_whole_or_not_there(small_disk) -> None:
    with pytest.raises(DiskError, match=r"No space left on device|os error 28") as error:
        save_weights(small_disk / "a.safetensors", {"a": torch.zeros(100_000)})
    assert "\n" not in str(error.value) and not list(small_disk.iterdir())
