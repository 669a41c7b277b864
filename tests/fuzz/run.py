"""Fuzz everything that comes from strangers, and write the table of docs/results/fuzz.md.

python -P tests/fuzz/run.py --cases 200000 --seed 0 --out docs/results/fuzz.md

Each target runs in processes of its own, first with cases that Hypothesis draws, then with cases that atheris
(libFuzzer) finds by the code that they reach. A process that crashes or hangs is a
fault, and the next one goes on behind the case.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
DRAWN = 0.1  # share of cases from Hypothesis
# Shares of all cases: what is parsed and decoded at most depth gets most.
SHARES = {
    "checkpoint": 3,
    "header": 3,
    "network": 4,
    "saved_tensor": 1,
    "shard_index": 1,
    "model_config": 1,
    "folder_list": 1,
    "batch_list": 2,
    "folder_text": 1,
    "workflow": 2,
    "picture": 4,
    "answer": 1,
}


_WORDS = """\
A case is what a stranger could hand over: a weight file, a header alone, a list of shards, settings of a network, lists
of results beside a folder or batch, texts of the folder nodes, a graph, a picture, a captioner's answer. It is refused
if it ends in one sentence (an `EAMError` on one line) and accepted if it is used. Anything else is a fault: another
exception, a process that ends, more than 20 seconds, 4 GiB of further addresses, a file written outside its folder, a
connection, a program started, an object looked up for a pickle. Python's audit events tell of the last four, whoever
causes them. `hypothesis` draws cases from good inputs with parts replaced; `atheris` (libFuzzer) keeps those that reach
new code. Peak memory is the whole process's, torch and ComfyUI included; growth is what came after its start.
"""


@dataclass(kw_only=True)
class Row:
    """What became of one target."""

    target: str
    engine: str
    cases: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0
    memory: int = 0
    grown: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add(self, tally: dict[str, Any]) -> None:
        """Add the numbers of one process."""
        for name in ("cases", "refused", "accepted", "seconds"):
            setattr(self, name, getattr(self, name) + tally[name])
        self.slowest = max(self.slowest, tally["slowest"])
        self.memory = max(self.memory, tally["memory"])
        self.grown = max(self.grown, tally["memory"] - tally["start_memory"])
        self.faults += [f"{fault['file']}: {fault['what']}" for fault in tally["faults"]]

    def line(self) -> str:
        """Return it as a line of the table."""
        return (
            f"| {self.target} | {self.engine} | {self.cases} | {self.refused} | {self.accepted} | "
            f"{1000 * self.slowest:.0f} ms | {self.memory / 2**20:.0f} MB | {self.grown / 2**20:.0f} MB | "
            f"{len(self.faults)} |"
        )


def run_target(target: str, engine: str, cases: int, seed: int, scratch: Path, kept: Path) -> Row:
    """Run one target until its cases are through; at most five processes may end early."""
    row = Row(target=target, engine=engine)
    for attempt in range(5):
        left = cases - row.cases
        if left <= 0:
            break
        folder = scratch / f"{target}-{engine}-{attempt}"
        command = [sys.executable, "-P", str(HERE / "worker.py"), target, "--engine", engine, "--cases", str(left)]
        command += ["--seed", str(seed + 1000 * attempt), "--scratch", str(folder)]
        with (kept / f"{target}-{engine}-{attempt}.log").open("wb") as log:
            code = subprocess.run(command, cwd=scratch, stdout=log, stderr=log, check=False).returncode
        file = folder / "tally.json"
        if file.is_file():
            row.add(json.loads(file.read_text(encoding="utf-8")))
        case = folder / "case"
        if case.is_file():  # the process ended in the middle of it
            saved = kept / f"{target}-{engine}-{attempt}.case"
            shutil.copy(case, saved)
            row.faults.append(f"{saved}: the process ended with status {code}")
        elif code:
            row.faults.append(f"the process ended with status {code}, see {kept}")
        for fault in folder.glob("fault-*"):
            shutil.copy(fault, kept / f"{target}-{engine}-{attempt}-{fault.name}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder.with_name(f"{folder.name}-seeds"), ignore_errors=True)
    return row


def plan(cases: int, targets: list[str], engines: list[str]) -> list[tuple[str, str, int]]:
    """Divide the cases among targets and engines."""
    total = sum(SHARES[target] for target in targets)
    parts = {"hypothesis": DRAWN, "atheris": 1 - DRAWN} if len(engines) == 2 else {engines[0]: 1.0}
    return [
        (target, engine, -(-int(cases * SHARES[target] * share) // total))
        for target in targets
        for engine, share in parts.items()
    ]


def report(rows: list[Row], seed: int, seconds: float) -> str:
    """Return the page."""
    cases, faults = sum(row.cases for row in rows), [fault for row in rows for fault in row.faults]
    lines = [
        "# Fuzzing",
        "",
        f"Written by `python -P tests/fuzz/run.py --seed {seed}`: {cases:,} cases in {seconds / 60:.0f} minutes, "
        f"{len(faults)} faults.",
        "",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, one process at a time, beside "
        "other work.",
        "",
        *textwrap.wrap(_WORDS, 120),
        "",
        "| target | engine | cases | refused | accepted | slowest | peak memory | growth | faults |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *(row.line() for row in rows),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--engines", nargs="*", default=["hypothesis", "atheris"], choices=["hypothesis", "atheris"])
    parser.add_argument("--kept", type=Path, help="folder for logs and cases with faults; a temporary one by default")
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    options = parser.parse_args()
    if "atheris" in options.engines and not importlib.util.find_spec("atheris"):
        print("expected the package atheris, found none; run pip install -e '.[fuzz]', or use --engines hypothesis")
        return 2
    kept = options.kept or Path(tempfile.mkdtemp(prefix="eam-fuzz-"))
    kept.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="eam-fuzz-") as scratch:
        for target, engine, cases in plan(options.cases, options.targets, options.engines):
            rows.append(run_target(target, engine, cases, options.seed, Path(scratch), kept))
            print(rows[-1].line(), *rows[-1].faults, sep="\n", flush=True)
    page = report(rows, options.seed, time.monotonic() - began)
    if options.out:
        options.out.write_text(page, encoding="utf-8")
    print(page, f"Logs and cases with faults: {kept}", sep="\n")
    return 1 if any(row.faults for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
