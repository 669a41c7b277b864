"""The comparison's own parts: what it writes, keeps and says; the peers' networks are not run here."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers", ROOT / "tests" / "bench" / "peers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def inputs(tmp_path):
    """Return a folder with a colour, a grey and a transparent picture, and what they look like as RGB."""
    folder, dice = tmp_path / "lr", np.random.default_rng(0)
    folder.mkdir()
    rgb = {}
    for name, mode, channels in (("colour", "RGB", 3), ("grey", "L", 1), ("clear", "RGBA", 4)):
        image = Image.fromarray(dice.integers(0, 256, (24, 20, channels), dtype=np.uint8).squeeze(), mode)
        image.save(folder / f"{name}.png")
        rgb[name] = image.convert("RGB")
    return folder, rgb


def test_filters_enlarge_every_kind_of_picture_four_times(peers, inputs, tmp_path, capsys):
    folder, rgb = inputs
    assert peers.main([str(folder), str(tmp_path / "out"), "--peers", "bicubic", "lanczos", "--threads", "1"]) == 0
    for name, resample in (("bicubic", Image.Resampling.BICUBIC), ("lanczos", Image.Resampling.LANCZOS)):
        assert len(list((tmp_path / "out" / name).iterdir())) == 3
        for stem, image in rgb.items():
            result = Image.open(tmp_path / "out" / name / f"{stem}.png")
            assert np.array_equal(np.asarray(result), np.asarray(image.resize((80, 96), resample)))
    said = capsys.readouterr().out
    assert "lanczos (Pillow" in said and "3 of 3 pictures done now" in said and "x bicubic" in said


def test_pictures_that_are_there_are_kept_unless_forced(peers, inputs, tmp_path, capsys):
    folder, out = inputs[0], tmp_path / "out"
    kept = out / "bicubic" / "grey.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"mine")
    command = [str(folder), str(out), "--peers", "bicubic"]
    assert peers.main(command) == 0
    assert kept.read_bytes() == b"mine" and "2 of 3 pictures done now" in capsys.readouterr().out
    assert peers.main([*command, "--force"]) == 0
    assert Image.open(kept).size == (80, 96)


def test_a_peer_without_its_package_is_named_and_skipped(peers, inputs, tmp_path, monkeypatch, capsys):
    absent = peers.Peer(title="X", packages=("eam-no-such-package",), load=lambda threads: 1 / 0)
    monkeypatch.setitem(peers.PEERS, "realsr", absent)
    assert peers.main([str(inputs[0]), str(tmp_path / "out"), "--peers", "realsr", "bicubic"]) == 0
    said = capsys.readouterr().out
    assert "realsr: skipped, expected the package eam-no-such-package" in said and "-r tests/bench/peers.txt" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bicubic"]


def test_every_package_of_a_network_is_pinned(peers):
    pins = {line.split("==")[0] for line in (ROOT / "tests/bench/peers.txt").read_text().splitlines() if "==" in line}
    needed = {name for key in ("realesrgan", "realsr", "dat-light") for name in peers.PEERS[key].packages}
    assert pins == needed


def test_a_folder_without_pictures_is_refused(peers, tmp_path, capsys):
    assert peers.main([str(tmp_path), str(tmp_path / "out"), "--peers", "bicubic"]) == 2
    assert "found none" in capsys.readouterr().err
