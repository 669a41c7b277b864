"""What the benchmarks share: a row of the table of bars, turns of several cases, the machine's name.

Scripts run as `python tests/bench/NAME.py`, so this module is found beside them.
"""

import argparse
import json
import operator
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

HOLDS = {"at most": operator.le, "at least": operator.ge}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure against its bar.

    Attributes:
        row: number in the table of bars; several figures may share one, and 0 is none of them.
        name: what was measured, sizes included.
        value: the figure; None where this machine cannot tell.
        bar: limit.
        limit: "at most" or "at least".
    """

    row: int
    name: str
    value: float | None
    bar: float
    limit: str = "at most"

    @property
    def state(self) -> str:
        """ "met", "missed" or, without a figure, "open"."""
        if self.value is None:
            return "open"
        return "met" if HOLDS[self.limit](self.value, self.bar) else "missed"

    def entry(self) -> dict[str, object]:
        """Return it as bench.json holds it."""
        fields = asdict(self)
        return {**{key: fields[key] for key in ("row", "name", "value", "bar")}, "state": self.state}

    def line(self) -> str:
        """Return it as a line of the Markdown table."""
        value = "" if self.value is None else f"{self.value:.3g}"
        return f"| {self.row or ''} | {self.name} | {value} | {self.limit} {self.bar:g} | {self.state} |"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Start the options of a script that may write its rows for the whole table."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=Path, help="write the rows of the table of bars here, as JSON")
    return made


def finish(rows: list[Row], path: Path | None) -> None:
    """Print rows and, for `bench.py`, write them."""
    for row in rows:
        print(row.line(), flush=True)
    if path:
        path.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")


def take_turns(cases: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, float]:
    """Time cases that take turns in every round, so that a busy machine slows all; return median seconds.

    One round before is not counted. On a CPU, the process's own CPU time counts over the threads, so that others on the
    machine disturb less.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(-1, rounds):
        for name, case in cases.items():
            start = now(device)
            case()
            if number >= 0:
                times[name].append(now(device) - start)
    return {name: statistics.median(values) for name, values in times.items()}


def now(device: str) -> float:
    """Return seconds: of the process's CPU time per thread on a CPU, of the wall once a GPU has finished."""
    if device == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize()
    return time.perf_counter()


def machine(device: str = "cpu") -> str:
    """Name what figures were taken on."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}; {versions}"
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {versions}"
