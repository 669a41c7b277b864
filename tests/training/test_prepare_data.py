"""Making shards: which crops, killed and started again, what is skipped, and that training reads the result."""

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eam_core.errors import ImageError
from train import prepare_data
from train.data import DataConfig, DataError, TrainingData, sources
from train.data.grid import detailed_crops
from train.options import run_script
from train.prepare_data import PrepareConfig, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight good pictures with captions, one broken, one too small, one without detail."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.sa.txt").write_text(f"caption {number}")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:2000])
    Image.new("RGB", (96, 20)).save(folder / "small.png")
    Image.new("RGB", (96, 64)).save(folder / "flat.png")
    return folder


def settings(folder: Path, **changes) -> PrepareConfig:
    return PrepareConfig(
        **{"sources": (str(folder),), "crop_size": 32, "crops_per_image": 2, "shard_size": 3} | changes
    )


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*"))}


def test_shards_hold_crops_with_captions_and_the_list_says_what_is_missing(folder, tmp_path):
    paths = prepare(settings(folder), tmp_path, num_workers=1)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar", "00002.tar", "00003.tar"]
    names = []
    for path in paths:
        with tarfile.open(path) as archive:
            names += [name for name in archive.getnames() if name != "__skipped__"]
    expected = {f"{folder.name}/{n}-crop{i:02d}.{kind}" for n in range(8) for i in (0, 1) for kind in ("jpg", "sa.txt")}
    assert set(names) == expected and len(names) == len(expected)
    skipped = (tmp_path / "skipped.txt").read_text().splitlines()
    assert len(skipped) == 3
    for name, reason in (("broken", "damaged"), ("small", "got 96 x 20"), ("flat", "the best has 0.00")):
        assert any(f"{folder.name}/{name}" in line and reason in line for line in skipped)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_training_reads_the_shards(folder, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(sources, "INDEXED_BYTES", limit)
    prepare(settings(folder), tmp_path, num_workers=1)
    config = DataConfig(data=(str(tmp_path),), crop_sizes=(32,), captions="sa", held_out=0, num_workers=0)
    batch = next(islice(TrainingData(config, seed=1, batch_size=16).batches(), 1))
    assert len(set(batch.keys)) == 16
    assert all(text == f"caption {key.split('/')[1][0]}" for key, text in zip(batch.keys, batch.captions))


def test_a_run_that_is_killed_goes_on_to_the_same_shards(folder, tmp_path):
    prepare(settings(folder), tmp_path / "whole", num_workers=1)
    again = tmp_path / "again"
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from train import prepare_data\n"
        "real, driver = prepare_data.decode, os.getpid()\n"
        "def waiting(*arguments):\n"
        "    while list(Path(sys.argv[2]).glob('*.tar')):\n"
        "        time.sleep(0.05)\n"
        "        if driver not in (os.getpid(), os.getppid()):\n"
        "            os._exit(1)\n"
        "    return real(*arguments)\n"
        "prepare_data.decode = waiting\n"
        "config = prepare_data.PrepareConfig(sources=(sys.argv[1],), crop_size=32, crops_per_image=2, shard_size=3)\n"
        "prepare_data.prepare(config, Path(sys.argv[2]), num_workers=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(again)], stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    )
    until = time.monotonic() + 60
    while not list(again.glob("*.tar")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in again.glob("*.tar")}
    assert 0 < len(finished) < 4 and not (again / "skipped.txt").exists()
    prepare(settings(folder), again, num_workers=2)
    assert digests(again) == digests(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())


def test_other_settings_or_pictures_are_refused(folder, tmp_path):
    prepare(settings(folder), tmp_path, num_workers=1)
    with pytest.raises(DataError, match=r"begun with, got crop_size 32 and now 48; use these or another folder"):
        prepare(settings(folder, crop_size=48), tmp_path, num_workers=1)
    before = digests(tmp_path)
    Image.new("RGB", (64, 64)).save(folder / "late.png")
    try:
        with pytest.raises(DataError, match="pictures 11 and now 12"):
            prepare(settings(folder), tmp_path, num_workers=1)
    finally:
        (folder / "late.png").unlink()
    assert digests(tmp_path) == before


def test_a_folder_with_other_shards_is_left_alone(folder, tmp_path):
    (tmp_path / "00000.tar").write_bytes(b"mine")
    with pytest.raises(DataError, match="got other shards; use another one"):
        prepare(settings(folder), tmp_path, num_workers=1)


def test_a_dead_worker_is_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, "decode", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match=r"a worker process died .*: lower --num-workers"):
        prepare(settings(folder), tmp_path, num_workers=1)


def test_the_most_detailed_places_are_chosen_without_overlap():
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    dice = np.random.default_rng(0)
    pixels[:32, 96:] = dice.integers(0, 256, (32, 32, 3))
    pixels[32:, :32] = dice.integers(0, 100, (32, 32, 3))
    first, second, *rest = detailed_crops(pixels, "p", size=32, most=4, min_detail=5)
    assert (first == pixels[:32, 96:]).all() and (second == pixels[32:, :32]).all() and not rest
    assert len(detailed_crops(pixels, "p", size=32, most=1, min_detail=5)) == 1
    assert len(detailed_crops(pixels, "p", size=32, most=9, min_detail=0)) == 8
    with pytest.raises(ImageError, match="p: expected a crop with a detail of 1000, the best has"):
        detailed_crops(pixels, "p", size=32, most=1, min_detail=1000)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare_data", *map(str, arguments)])
    try:
        run_script(prepare_data.main)
    except SystemExit as stop:
        return int(str(stop.code))
    return 0


def test_the_command_line_makes_shards_and_says_mistakes_in_one_sentence(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    made = run(monkeypatch, folder, "--out", out, "--crop-size", 32, "--shard-size", 6, "--num-workers", 1)
    assert made == 0 and (out / "00001.tar").exists()
    shown = capsys.readouterr().err
    assert "11/11" in shown and "2 shards in" in shown
    for arguments, sentence in (
        ((tmp_path / "none", "--out", out), "found none at"),
        ((folder, "--out", out / "prepare.json/under"), "expected to write it, could not (Not a directory)"),
        ((folder, "--out", out, "--quality", 0), "expected a quality from 1 to 100, got 0"),
    ):
        assert run(monkeypatch, *arguments) == 2
        assert sentence in capsys.readouterr().err
