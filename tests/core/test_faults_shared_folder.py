"""Two programs with one output folder: each result is whole, its own picture's, and saved once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eam_core.folder_report import REPORT_NAME

NAMES = ["1.png", "2.png", "3.png"]

PROGRAM = """
import json, sys, time
from collections import deque
from pathlib import Path
from eam_core import folder_batch
from eam_core.errors import EAMError
from eam_core.folder_batch import Batch, BatchSettings
from eam_core.folder_names import Saver

save = folder_batch.save_image

def slow(*args):
    time.sleep(0.1)  # between the look and the writing
    save(*args)

def step(batch):
    work = batch.pick()
    if work:
        batch.save(work, "0", [batch.load(work)] * 2, {})
    return work

folder_batch.save_image = slow
print("loaded", flush=True)
for line in sys.stdin:
    place, source, overwrite = json.loads(line)
    place, said = Path(place), []
    savers = (Saver(key="0"),)
    places = {"folder": place / source, "output": place / "out", "source": source}
    batch = Batch(BatchSettings(**places, savers=savers, overwrite=overwrite))
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        left = len(batch.left)
        try:
            if step(batch) is None:
                break
        except EAMError as error:
            said.append(str(error))
            if len(batch.left) == left:  # refused before it was begun
                batch.left.popleft()
    print(json.dumps([*said, batch.progress()]), flush=True)
"""


@pytest.fixture(scope="module")
def programs() -> Iterator[list[subprocess.Popen]]:
    command, pipes = [sys.executable, "-P", "-c", PROGRAM], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        both = [stack.enter_context(subprocess.Popen(command, text=True, bufsize=1, **pipes)) for _ in range(2)]
        for process in both:
            assert process.stdout.readline() == "loaded\n"
        yield both
        for process in both:
            process.stdin.close()


def run_two(programs: list[subprocess.Popen], tmp_path: Path, *sources: str, overwrite: bool) -> list[list[str]]:
    """Let two programs go through a folder each at once; return what they say."""
    for process, source in zip(programs, sources, strict=True):
        process.stdin.write(json.dumps([str(tmp_path), source, overwrite]) + "\n")
    for process in programs:
        assert process.stdout.readline() == "ready\n"
    for process in programs:
        process.stdin.write("go\n")
    return [json.loads(process.stdout.readline()) for process in programs]


def make(tmp_path: Path, source: str, shade: int) -> None:
    (tmp_path / source).mkdir()
    for name in NAMES:
        Image.fromarray(np.full((16, 20, 3), shade, np.uint8)).save(tmp_path / source / name)


def owners(tmp_path: Path) -> dict[str, str]:
    """Return which folder each result is of, as its report says."""
    lines = [json.loads(text) for text in (tmp_path / "out" / REPORT_NAME).read_text().splitlines()]
    return {file: line["folder"] for line in lines for file in line.get("files", [])}


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_programs_with_one_output_folder(programs, tmp_path: Path, overwrite: bool) -> None:
    """Pictures of two folders that share names: each result is whole, and of the folder that the report names."""
    shades = {"in": 0, "other": 255}
    for source, shade in shades.items():
        make(tmp_path, source, shade)
    texts = run_two(programs, tmp_path, *shades, overwrite=overwrite)
    owned = owners(tmp_path)
    assert sorted(owned) == sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert {f"{number}.png" for number in (1, 2, 3)} <= owned.keys()
    for name, source in owned.items():
        assert np.asarray(Image.open(tmp_path / "out" / name)).max() == shades[source], name
    refused = [line for lines in texts for line in lines if "expected a name for the result of" in line]
    assert refused, "two pictures had one name, and nobody was told"


def test_two_programs_on_one_folder(programs, tmp_path: Path) -> None:
    """Both end well; what one has saved the other leaves as it is."""
    make(tmp_path, "in", 90)
    texts = run_two(programs, tmp_path, "in", "in", overwrite=False)
    assert [lines[-1] for lines in texts] == ["3 of 3", "3 of 3"]
    assert [name for name in results_of_batches(tmp_path) if "_" not in name] == NAMES
    lines = [json.loads(text) for text in (tmp_path / "out" / REPORT_NAME).read_text().splitlines()]
    files = [file for line in lines for file in line.get("files", [])]
    assert len(files) == len(set(files)) == 6, "a picture was saved twice"


def results_of_batches(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").glob("*.png"))
