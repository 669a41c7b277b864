"""Peak memory and time of a whole restoration against the size of the result, 1 to 64 megapixels.

    python tests/bench/memory.py [--megapixels 1 4 16 64] [--plot output/growth.png]

The embedded default through `Restorer.restore`, each size in a process of its own, scale 4, a picture of noise. On the
CPU the resident peak above that of the loaded model counts; the slope between the two largest sizes is bytes a pixel of
the result, and what is left of the peak is the model's. On CUDA the device's own peak counts for the model.

A CPU's speed drifts by more within the minutes of a large picture than what is to be found. So there each size runs on
one thread, and a second process restores 1 megapixel again and again at the same time: time is against that one's.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import report
import torch

SCALE = 4
MEGAPIXELS = [1, 4, 16, 64]
SPREAD = 16  # megapixels over which smaller sizes are timed


def peak_bytes() -> int:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def side_of(megapixels: float) -> int:
    """Return the side of the square input, in pixels."""
    return round((megapixels * 1e6) ** 0.5 / SCALE / 2) * 2


def measure(megapixels: float, device: str) -> dict[str, float]:
    """Restore one picture; meant for a process that does nothing else."""
    from eam_core.pipeline import Restorer
    from eam_core.restore_config import RestoreConfig

    side = side_of(megapixels)
    restorer, config = Restorer.embedded(device), RestoreConfig(scale=SCALE)
    restorer.restore(torch.rand(1, 3, 64, 64), config)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    image, before, start = torch.rand(1, 3, side, side), peak_bytes(), time.perf_counter()
    cpu = time.process_time()
    restorer.restore(image, config)
    found = {"pixels": float((SCALE * side) ** 2), "bytes": float(peak_bytes() - before)}
    # Small pictures again and again: a few seconds of a shared machine say little.
    rounds = max(1, round(SPREAD / megapixels))
    for _ in range(rounds - 1):
        restorer.restore(image, config)
    seconds = time.perf_counter() - start if device == "cuda" else time.process_time() - cpu
    found["seconds"] = seconds / rounds
    found["device_bytes"] = float(torch.cuda.max_memory_allocated()) if device == "cuda" else 0.0
    return found


def restore_for_ever(megapixels: float) -> None:
    """Restore pictures of one size on the CPU and print the CPU seconds of each, until it is ended."""
    from eam_core.pipeline import Restorer
    from eam_core.restore_config import RestoreConfig

    side = side_of(megapixels)
    restorer, config, image = Restorer.embedded(), RestoreConfig(scale=SCALE), torch.rand(1, 3, side, side)
    while True:
        cpu = time.process_time()
        restorer.restore(image, config)
        print(time.process_time() - cpu, flush=True)


def measure_beside(megapixels: float) -> dict[str, float]:
    """Restore one picture on one thread, and give its time over that of 1 megapixel at the same time.

    Returns:
        What `measure` returns; seconds are such that 1 megapixel takes one.
    """
    command, one_thread = [sys.executable, __file__], {**os.environ, "OMP_NUM_THREADS": "1"}
    given = {"stdout": subprocess.PIPE, "text": True, "env": one_thread}
    with subprocess.Popen([*command, "--beside", "1"], **given) as beside:
        try:
            assert beside.stdout is not None
            beside.stdout.readline()  # it has loaded its model and warmed up
            done = subprocess.run([*command, "--one", str(megapixels)], check=True, **given)
        finally:
            beside.terminate()
        others = [float(line) for line in beside.stdout]
    found = json.loads(done.stdout.splitlines()[-1])
    side = side_of(1)
    per_pixel = statistics.median(others) / (SCALE * side) ** 2
    return {**found, "seconds": found["seconds"] / per_pixel / 1e6}


def measure_alone(megapixels: float) -> dict[str, float]:
    """Run `measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", str(megapixels)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def plot(results: list[dict[str, float]], path: Path) -> None:
    """Draw memory and time per megapixel."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = [result["pixels"] / 1e6 for result in results]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(sizes, [result["bytes"] / 1e9 for result in results], marker="o")
    left.set(xlabel="megapixels of the result", ylabel="peak memory, GB", xscale="log", yscale="log")
    times = [result["seconds"] / size for result, size in zip(results, sizes)]
    right.plot(sizes, [value / times[-1] for value in times], marker="o")
    right.set(xlabel="megapixels of the result", ylabel="time per megapixel, largest = 1", xscale="log", ylim=(0, 1.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--megapixels", type=float, nargs="+", default=MEGAPIXELS)
    parser.add_argument("--one", type=float, help="measure this size in this process and print JSON")
    parser.add_argument("--beside", type=float, help="restore this size for ever and print the time of each")
    parser.add_argument("--plot", type=Path, default=Path("output/growth.png"))
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.beside:
        restore_for_ever(options.beside)
    if options.one:
        print(json.dumps(measure(options.one, device)))
        return
    results = []
    for size in options.megapixels:
        results.append(measure_beside(size) if device == "cpu" else measure_alone(size))
        done = results[-1]
        pixels = done["pixels"]
        figures = f"{done['bytes'] / 1e6:7.0f} MB, time per MP {1e6 * done['seconds'] / pixels:.3f}"
        print(f"{pixels / 1e6:6.1f} MP: {figures}", flush=True)
    slopes = [(b["bytes"] - a["bytes"]) / (b["pixels"] - a["pixels"]) for a, b in pairwise(results)]
    per_pixel = [result["seconds"] / result["pixels"] for result in results]
    on_device = [result["device_bytes"] for result in results]
    plot(results, options.plot)
    sizes = f"{options.megapixels[0]:g} to {options.megapixels[-1]:g} MP"
    last_step = " to ".join(f"{size:g}" for size in options.megapixels[-2:]) + " MP"
    report.finish(
        [
            report.Row(row=8, name=f"bytes a pixel of the result, {last_step}", value=slopes[-1], bar=40),
            report.Row(
                row=8,
                name=f"model's peak on the GPU, largest over smallest, {sizes}",
                value=max(on_device) / min(on_device) if device == "cuda" else None,
                bar=1.05,
            ),
            report.Row(
                row=8,
                name=f"time per megapixel, largest over smallest of {sizes}",
                value=max(per_pixel) / min(per_pixel),
                bar=1.1,
            ),
        ],
        options.rows,
    )


if __name__ == "__main__":
    main()
