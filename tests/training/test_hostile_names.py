"""Names of pictures in the scores of an evaluation: a spreadsheet takes none for a formula, and all are read back."""

import csv
from pathlib import Path

from train.evaluation.scores import _read, _write

NAMES = ["=cmd|'calc'!A1", "+1", "-2", "@sum", "\tx", "'=3", "''", "it's", "plain"]


def test_names_are_no_formulas_and_are_read_back(tmp_path: Path) -> None:
    store = tmp_path / "scores.csv"
    rows = [{"method": name, "image": name, "inputs": "a1", "psnr": "-3.5"} for name in NAMES]
    _write(store, ["method", "image", "inputs", "psnr"], rows)
    with open(store, newline="", encoding="utf-8") as file:
        written = list(csv.reader(file))[1:]
    assert not [cell for line in written for cell in line[:2] if cell.startswith(("=", "+", "-", "@", "\t"))]
    columns, read = _read(store)
    assert columns == ["psnr"]
    assert list(read.values()) == rows and list(read) == [(name, name) for name in NAMES]
