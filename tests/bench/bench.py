"""Run the benchmarks and write one table of figures against bars: what `make bench` runs.

    python tests/bench/bench.py --out output [--only mmdit_forward start] [--markdown docs/results/speed.md]

Writes OUT/bench.json, a list of {row, name, value, bar, state}, OUT/bench.md with machine and versions, and a plot; row
0 is what one means of saving time gives alone. Each script runs in a process of its own and prints what it does; one
that fails leaves its rows out, is named and ends the run with status 1. Figures are ratios within one run; let nothing
else run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import report
import torch

HERE = Path(__file__).parent
PLOT = "growth.png"
SCRIPTS = (
    "mmdit_forward",
    "control_step",
    "tiling",
    "whole_restoration",
    "means",
    "lr_memory",
    "restore_gpu",
    "comfy_memory",
    "memory",
    "masked_step",
    "degradation",
    "start",
    "default_speed",
)


def run(script: str, out: Path) -> list[report.Row] | None:
    """Run one script; None where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        print(f"\n{script}", flush=True)
        options = ["--plot", str(out / PLOT)] if script == "memory" else []
        done = subprocess.run([sys.executable, str(HERE / f"{script}.py"), "--rows", str(path), *options])
        if done.returncode or not path.exists():
            return None
        return [report.Row(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]


def table(rows: list[report.Row], plotted: bool) -> str:
    """Return the Markdown page."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = {state: sum(row.state == state for row in rows) for state in ("met", "missed", "open")}
    lines = [
        "# Speed and memory",
        "",
        f"`make bench` on {report.machine(device)}. "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
        + ".",
        "Rows without a figure need a GPU.",
        "",
        *_section([row for row in rows if row.row], "#"),
        "",
        *([f"![Peak memory and time per megapixel]({PLOT})", ""] if plotted else []),
        "## Each means alone",
        "",
        "Time with it over time without it; it pays below 1.",
        "",
        *_section([row for row in rows if not row.row], ""),
    ]
    return "\n".join(lines) + "\n"


def _section(rows: list[report.Row], number: str) -> list[str]:
    return [f"| {number} | what | figure | bar | |", "|---|---|---|---|---|", *(row.line() for row in rows)]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("output"))
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {script: run(script, options.out) for script in options.only}
    rows = sorted((row for done in found.values() for row in done or []), key=lambda row: row.row)
    page = table(rows, plotted=bool(found.get("memory")))
    entries = [row.entry() for row in rows]
    (options.out / "bench.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    (options.out / "bench.md").write_text(page, encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(page, encoding="utf-8")
        if found.get("memory"):
            options.markdown.with_name(PLOT).write_bytes((options.out / PLOT).read_bytes())
    failed = [script for script, done in found.items() if done is None]
    print(f"\n{page}" + (f"\nfailed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
