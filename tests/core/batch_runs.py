"""What the tests of batches share: folders of small pictures, runs of the command, kills, and what must hold after."""

import collections
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from eam_core import cli
from eam_core.batch_manifest import MANIFEST

OPTIONS = ["--scale", "2", "--device", "cpu"]
OURS = {MANIFEST, ".eam_batch.lock"}


def make_pictures(folder, count, side=16):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def expected(folder, target, capsys):
    """Restore the folder with `upscale` in this process; return {name: hash}."""
    assert cli.main(["upscale", str(folder), str(target), *OPTIONS]) == 0
    capsys.readouterr()
    return hashes(target)


def hashes(folder):
    """Return the hash of every file but the batch's own; subfolders too."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items() if name not in OURS}


def lines(output):
    """Return the manifest's whole lines; half lines and blank ones are what a kill may leave."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for text in (output / MANIFEST).read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(text))
    return found


def start(*args, **environment):
    """Start the command in a group of its own, on one thread per worker."""
    command = [sys.executable, "-P", "-m", "eam_core", "batch", *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def finish(process, timeout=300):
    """Return exit status and what was said."""
    said = process.communicate(timeout=timeout)[0]
    return process.returncode, said


def children(pid):
    """Return the processes that a process started, by Linux' own list."""
    with contextlib.suppress(OSError):
        return [int(text) for path in Path(f"/proc/{pid}/task").glob("*/children") for text in path.read_text().split()]
    return []


def kill(*pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for_lines(process, output, count, seconds=300):
    """Wait until the manifest has so many lines, or the driver has ended."""
    end = time.monotonic() + seconds
    while len(lines(output)) < count and process.poll() is None:
        assert time.monotonic() < end, f"{len(lines(output))} lines after {seconds} s"
        time.sleep(0.005)


class Killer:
    """Run a batch, and kill parts of it again and again.

    Attributes:
        counts: kills by kind: worker, driver, or all at once as when the machine goes.
        starts: how often the command was started.
    """

    def __init__(self, folder, output, seed, log=lambda text: None):
        self.args, self.output, self.log = [folder, output, *OPTIONS, "--num-workers", "2"], output, log
        self.random = random.Random(seed)
        self.counts, self.starts = collections.Counter(), 0
        self.process = None

    def kill(self, kind, most_lines):
        """Let the batch run until some more lines are written, or for a moment of its start; then kill."""
        if self.process is None or self.process.poll() is not None:
            self.process = start(*self.args)
            self.starts += 1
        more, before = self.random.randint(0, most_lines), len(lines(self.output))
        if more:
            wait_for_lines(self.process, self.output, before + more)
            time.sleep(self.random.uniform(0, 0.03))
        else:
            end = time.monotonic() + self.random.uniform(0, 5)
            while time.monotonic() < end and len(lines(self.output)) < before + most_lines:
                time.sleep(0.005)
        workers = children(self.process.pid)
        if self.process.poll() is not None or (kind == "worker" and not workers):
            return False
        if kind == "worker":
            kill(self.random.choice(workers))
        elif kind == "driver":
            kill(self.process.pid)
        else:
            kill(*self.random.sample([self.process.pid, *workers], 1 + len(workers)))
        if kind != "worker":
            finish(self.process)
        self.counts[kind] += 1
        done = sum(line["state"] == "done" for line in lines(self.output))
        self.log(f"kill {sum(self.counts.values())}: {kind} after {more} lines; {done} done")
        return True

    def finish(self):
        """Let the batch end, in another start if need be."""
        if self.process is None or finish(self.process)[0] != 0:
            self.process = start(*self.args)
            self.starts += 1
            status, said = finish(self.process, timeout=1500)
            assert status == 0, said


def check_whole(output, wanted):
    """Check that every picture is in the output once and whole, equal to what `upscale` makes, and was done once."""
    assert hashes(output) == wanted
    states = collections.defaultdict(list)
    for line in lines(output):
        if "name" in line:
            states[line["name"]].append(line)
    assert set(states) == set(wanted)
    for name, of in states.items():
        assert [line["state"] for line in of].count("done") == 1, of
        assert of[-1]["state"] == "done" and of[-1]["output_sha256"] == wanted[name]
        assert {"settings", "seed", "input_sha256", "seconds", "worker"} <= set(of[-1])
