"""Interrupt ComfyUI 100 times, queue 300 prompts of changing settings, and write down what came of it.

python tests/bench/soak.py [--interrupts 100] [--prompts 300] [--fresh 6] [--out docs/results/soak.md]
Uses servers of its own with this checkout, which must not change meanwhile; takes a quarter of an hour alone on a CPU.
tests/comfyui/test_interrupts.py runs a few of each.
"""

import argparse
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path += [str(Path(__file__).resolve().parents[number] / name) for number, name in ((2, "tools"), (1, "comfyui"))]

from comfy_host import ComfyServer
from soak_runs import PHOTOS, Cycles, Memory, Soak, digest, draw, growth, interrupt_cycles, soak

TESTS = Path(__file__).resolve().parents[1]
SETTINGS, EVERY, WARM_UP = 60, 10, 20
MOST_GROWTH = 0.02


@contextmanager
def server() -> Iterator[ComfyServer]:
    """Start a ComfyUI of its own with the pack, two photos and the nodes that measure."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "custom_nodes").mkdir()
        shutil.copy(TESTS / "comfyui" / "soak_pack.py", folder / "custom_nodes")
        with ComfyServer(folder) as running:
            for number, name in enumerate(PHOTOS):
                coarse = np.random.default_rng(number).integers(0, 256, (4, 6, 3)).astype(np.uint8)
                Image.fromarray(coarse).resize((48, 32), Image.Resampling.BICUBIC).save(folder / name)
                running.upload_image(folder / name)
            yield running


def main() -> int:
    args = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    with server() as running:
        cycles = interrupt_cycles(running, args.interrupts, warm_up=WARM_UP)
        print(f"{cycles.interrupted} interrupts, {len(cycles.changed)} changed pictures", flush=True)
        many = soak(running, args.prompts, settings=SETTINGS, every=EVERY)
        print(f"{many.runs} prompts, {len(many.changed)} changed, {len(many.failed)} failed", flush=True)
    differing = compare_with_fresh(many, args.fresh)
    lines = report(cycles, many, differing, args, time.monotonic() - began)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written: {args.out}")
    good = not (cycles.changed or many.changed or many.failed or differing) and grown(cycles, many) < MOST_GROWTH
    return 0 if good else 1


def compare_with_fresh(many: Soak, count: int) -> list[str]:
    """Run settings drawn from the soak, each as the first prompt of a fresh server; return what differs."""
    differing = []
    for setting in random.Random(1).sample(sorted(many.digests), min(count, len(many.digests))):
        with server() as running:
            found = digest(running, draw(running, setting))
        print(f"setting {setting}: {found} in a fresh server, {many.digests[setting]} in the soak", flush=True)
        if found != many.digests[setting]:
            differing.append(f"setting {setting}")
    return differing


def grown(cycles: Cycles, many: Soak) -> float:
    """Return the larger growth of memory, as a share."""
    return max(growth(one.tidied for one in cycles.memory), growth(one.tidied for one in after_warm_up(many)))


def after_warm_up(many: Soak) -> list[Memory]:
    """Leave out the first third: until each setting has run once, libraries still load and caches of theirs fill."""
    return many.memory[len(many.memory) // 3 :]


def report(cycles: Cycles, many: Soak, differing: list[str], args: argparse.Namespace, seconds: float) -> list[str]:
    where = ", ".join(f"{node} {count}" for node, count in sorted(cycles.where.items(), key=lambda one: -one[1]))
    changed = len(cycles.changed), len(many.changed)
    return [
        "# Interrupts and a soak",
        "",
        "What a ComfyUI with this pack holds after many interrupts and prompts. Written by "
        "`python tests/bench/soak.py`; `tests/comfyui/test_interrupts.py` runs a few of each with every test run, and "
        "all of it with `EAM_SLOW=1`.",
        "",
        f"{platform.python_implementation()} {platform.python_version()}, torch {torch.__version__}, "
        f"CPU ({platform.machine()}), embedded model; {seconds / 60:.0f} minutes on a machine that did other work too.",
        "",
        "| | interrupts | prompts of changing settings |",
        "|---|---|---|",
        f"| runs | {cycles.interrupted} interrupted, {cycles.too_late} more had ended before the interrupt came; each "
        f"queued again | {many.runs} of {len(many.digests)} settings, {len(many.failed)} failed |",
        f"| pictures that differ in a bit | {changed[0]} of {cycles.interrupted + cycles.too_late} from the untroubled "
        f"one | {changed[1]} from an earlier run of the same setting, {len(differing)} of {args.fresh} from a fresh "
        "server |",
        _row("growth of memory", cycles, many, lambda ones: f"{growth(one.tidied for one in ones):+.2%}"),
        _row("first and last reading", cycles, many, lambda ones: _ends(ones, "tidied")),
        _row("scatter of readings", cycles, many, lambda ones: f"{_scatter(ones):.2%}"),
        _row("the same before tidying", cycles, many, lambda ones: _ends(ones, "resident")),
        _row("tensors", cycles, many, lambda ones: _span(one.tensors for one in ones)),
        _row("bytes of tensors", cycles, many, lambda ones: _span(one.tensor_bytes for one in ones)),
        _row("loaded models; patchers", cycles, many, lambda ones: _span((one.loaded, one.patchers) for one in ones)),
        _row("objects of the pack", cycles, many, lambda ones: _span(one.pack_objects for one in ones)),
        "",
        f"Interrupted in: {where}.",
        "",
        "**What is compared.** Resident memory of ComfyUI's process from `/proc`, at one point of a cycle only: "
        "nothing runs, the same prompt ran last (ComfyUI keeps the results of its last prompt), ComfyUI's list of past "
        "prompts is emptied (it keeps 10,000, with or without this pack), garbage is collected, and glibc has given "
        f"free pages back (`malloc_trim`). The first {WARM_UP} interrupts and the first third of the soak are warm-up. "
        "Growth is the median of the last third of the readings over that of the first third; the bar is 2 %. Tensors "
        "and objects are counted, not estimated: one that stayed with each run would show as a growing number.",
        "",
        "**What is drawn.** Two pictures of four sizes, batches of 1 and 2; EAM Upscale or the expert graph, with EAM "
        "Report and EAM Compare at times; scale 1 to 4, 1 to 3 steps, CFG, three samplers, two schedulers, start, "
        "fidelity, tiles of 64 to 128 pixels and the usual ones, overlaps, 1 to 4 tiles at once, strength 0 to 1.5, "
        "all color fixes. One prompt in ten follows an unloading of all models. Half of the interrupts come at a "
        "drawn share of the tiles, half at any moment of the run, loading and decoding included.",
    ]


def _row(name: str, cycles: Cycles, many: Soak, show) -> str:
    return f"| {name} | {show(cycles.memory)} | {show(after_warm_up(many))} |"


def _ends(ones: list[Memory], field: str) -> str:
    return " and ".join(f"{getattr(one, field) / 2**20:.1f} MiB" for one in (ones[0], ones[-1]))


def _scatter(ones: list[Memory]) -> float:
    values = [one.tidied for one in ones]
    return (max(values) - min(values)) / statistics.median(values)


def _span(values) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interrupts", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--fresh", type=int, default=6, help="settings that are compared with a fresh server")
    parser.add_argument("--out", type=Path, default=TESTS.parent / "docs" / "results" / "soak.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
