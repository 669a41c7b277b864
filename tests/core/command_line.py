"""What the tests of the command line share: pictures good and bad, calls, and how a mistake is told."""

import os
import subprocess
import sys

import numpy as np
from PIL import Image

FAST = ["--scale", "2", "--steps", "1", "--tile", "128", "--device", "cpu"]


def pixels(height=20, width=28, channels=3, seed=0):
    shape = (height // 4, width // 4, channels)
    rough = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return rough.repeat(4, axis=0).repeat(4, axis=1)


def write(path, mode="RGB", **options):
    Image.fromarray(pixels()).convert(mode).save(path, **options)
    return path


def refused(result, *words):
    """Check that a run ended with exit status 2 and one sentence that has all the words."""
    status, out, err = result
    assert status == 2, err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for word in ("expected", *words):
        assert word in lines[0]


def call(*args):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "eam_core", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def make_bad_pictures(folder):
    """Return (file, words its message must have) for each kind of bad picture."""
    (folder / "text.png").write_text("not a picture")
    data = write(folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "short.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").touch()
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("1", (30_000, 20)).save(folder / "wide.png")
    (folder / "folder.png").mkdir()
    return {
        "text.png": ["PNG"],
        "short.png": ["truncated"],
        "empty.png": ["PNG"],
        "dot.png": ["1 x 1"],
        "wide.png": ["30000 x 20", "crop"],
        "missing.png": ["no such file"],
    }
