"""The table of the benchmarks: which figures meet their bars, which have none, and what is written."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import bench
import report

ROWS = [
    report.Row(row=3, name="tiles", value=1.06, bar=1.05),
    report.Row(row=1, name="forward", value=1.0, bar=1.0),
    report.Row(row=9, name="masked", value=1.54, bar=1.5, limit="at least"),
    report.Row(row=5, name="matmul peak", value=None, bar=0.55, limit="at least"),
    report.Row(row=0, name="fused", value=0.3, bar=1.0),
]


def test_a_run_writes_json_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(script: str, out: Path) -> list[report.Row] | None:
        (out / bench.PLOT).write_bytes(b"plot")
        return {"memory": ROWS, "start": None}[script]

    monkeypatch.setattr(bench, "run", run)
    page = tmp_path / "docs" / "speed.md"
    page.parent.mkdir()
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(out), "--only", "memory", "start", "--markdown", str(page)])
    assert bench.main() == 1, "a script failed"
    entries = json.loads((out / "bench.json").read_text())
    assert [(entry["row"], entry["state"]) for entry in entries] == [
        (0, "met"),
        (1, "met"),
        (3, "missed"),
        (5, "open"),
        (9, "met"),
    ]
    assert set(entries[0]) == {"row", "name", "value", "bar", "state"}
    text = page.read_text()
    assert text == (out / "bench.md").read_text()
    assert "3 met, 1 missed, 1 open" in text and "| 5 | matmul peak |  | at least 0.55 | open |" in text
    assert text.index("forward") < text.index("tiles") < text.index(bench.PLOT) < text.index("fused")
    assert page.with_name(bench.PLOT).read_bytes() == b"plot"


def test_a_script_that_fails_leaves_its_rows_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "HERE", tmp_path)
    (tmp_path / "start.py").write_text("raise SystemExit(3)")
    assert bench.run("start", tmp_path) is None
    (tmp_path / "start.py").write_text("import sys; open(sys.argv[2], 'w').write('[]')")
    assert bench.run("start", tmp_path) == []
