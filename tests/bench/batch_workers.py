"""Throughput of `batch` with two workers on two cores, against one worker on one core and one on two.

    python tests/bench/batch_workers.py [--pictures 24] [--rounds 3]

Real runs of the command with the embedded default, 128 x 128 to 512 x 512. Counted is from when the last worker begins
its first picture to the last picture's end, by the manifest: starting processes and loading the model is left out. The
best round counts, as other work on the machine only adds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import report
from PIL import Image

from eam_core.batch_manifest import MANIFEST

# Name: workers, cores that they share.
CASES = {"1 worker, 1 core": (1, 1), "1 worker, 2 cores": (1, 2), "2 workers, 2 cores": (2, 2)}


def make_pictures(folder: Path, count: int) -> None:
    """Write pictures of smooth noise, the same each time."""
    folder.mkdir()
    for number in range(count):
        rough = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((128, 128), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def run(source: Path, target: Path, workers: int, cores: int) -> tuple[float, float]:
    """Run a batch; return seconds of the work, and of all with start and end."""
    start = time.monotonic()
    command = [sys.executable, "-P", "-m", "eam_core", "batch", str(source), str(target), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": str(cores)}
    subprocess.run([*command, "--num-workers", str(workers)], check=True, env=environment, capture_output=True)
    whole = time.monotonic() - start
    lines = [json.loads(text) for text in (target / MANIFEST).read_text().splitlines()]
    times = [datetime.fromisoformat(line["time"]) for line in lines if line["state"] in ("begun", "done")]
    # Until the last worker is ready, the others work alone: count from there on.
    ready = {
        line["worker"]: datetime.fromisoformat(line["time"]) for line in reversed(lines) if line["state"] == "begun"
    }
    begin = max(ready.values())
    done = sum(line["state"] == "done" and datetime.fromisoformat(line["time"]) > begin for line in lines)
    return (max(times) - begin).total_seconds() / done, whole


def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        make_pictures(source, args.pictures)
        for number in range(args.rounds):
            for name, (workers, cores) in CASES.items():
                each, whole = run(source, Path(folder) / f"{number} {name}", workers, cores)
                best[name] = min(best.get(name, each), each)
                print(f"{name}: {each:.3f} s per picture, {3600 / each:.0f} an hour; {whole:.1f} s in all", flush=True)
    one, wide, two = (best[name] for name in CASES)
    print(report.machine())
    rows = [
        report.Row(row=0, name="batch: 2 workers on 2 cores over 1 on 1", value=one / two, bar=1.6, limit="at least"),
        report.Row(row=0, name="batch: 2 workers on 2 cores over 1 on 2", value=wide / two, bar=1.0, limit="at least"),
    ]
    report.finish(rows, args.rows)


if __name__ == "__main__":
    main()
