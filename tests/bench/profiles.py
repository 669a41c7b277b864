"""Where the time of a step and of a whole restoration goes: tables of the torch profiler.

    python tests/bench/profiles.py [--markdown docs/results/profiles.md] [--operators 12]

A Psi-DiT step of SD3 medium's width with random weights (CUDA: 24 blocks in bf16 on a tile of 1024 px, CPU: two blocks
in float32 on 512 px), and the embedded default from 256 to 1024 px.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import report
import torch
from control_step import Bench
from torch.profiler import ProfilerActivity, profile

from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig


def shares(run: Callable[[], object], device: str) -> list[tuple[str, int, float]]:
    """Return name, calls and share of the time of each operator, the largest first; the rest is named Python's."""
    run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        report.now(device)  # waits for a GPU
        spent = time.perf_counter() - start
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    operators = [(event.key, event.count, getattr(event, field) / 1e6 / spent) for event in profiler.key_averages()]
    operators = [operator for operator in operators if operator[2] > 0]
    if device == "cpu":
        outside = max(0.0, 1 - sum(share for *_, share in operators))
        operators.append(("outside of operators", 1, outside))
    return sorted(operators, key=lambda operator: -operator[2])


def table(title: str, operators: list[tuple[str, int, float]], most: int) -> list[str]:
    """Return a section of the page."""
    rest = sum(share for *_, share in operators[most:])
    lines = [f"| `{name}` | {count} | {share:.1%} |" for name, count, share in operators[:most]]
    return [
        "",
        f"## {title}",
        "",
        "| operator | calls | share |",
        "|---|---|---|",
        *lines,
        f"| others | | {rest:.1%} |",
    ]


@torch.no_grad()
def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--operators", type=int, default=12, help="lines of each table")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # operators' times add up to the whole only on one thread
    num_blocks, size = (24, 1024) if device == "cuda" else (2, 512)
    bench = Bench(device, num_blocks, size)
    lines = [
        "# Profiles",
        "",
        f"`python tests/bench/profiles.py` on {report.machine(device)}. Shares of one run's time.",
    ]
    for name in bench.models:
        step = functools.partial(bench.step, name, bench.state(name))
        title = f"A step with {name}, {num_blocks} blocks of SD3 medium's width, {size} px"
        lines += table(title, shares(step, device), options.operators)
    restorer, picture = Restorer.embedded(device), torch.rand(1, 3, 256, 256)
    whole = functools.partial(restorer.restore, picture, RestoreConfig())
    lines += table("A restoration from 256 to 1024 px, embedded default", shares(whole, device), options.operators)
    page = "\n".join(lines) + "\n"
    print(page)
    if options.markdown:
        options.markdown.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
