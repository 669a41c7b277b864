"""Graphs from strangers: hundreds of broken ones go through ComfyUI's own check and the nodes that read them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="expected the package hypothesis, found none; run pip install -e '.[dev]'")


def test_graphs_end_in_a_sentence_or_a_result(tmp_path):
    command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), "workflow", "--cases", "300"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--scratch", str(tmp_path / "scratch")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tally = json.loads((tmp_path / "scratch" / "tally.json").read_text(encoding="utf-8"))
    assert tally["faults"] == []
    assert min(tally["accepted"], tally["refused"]) >= 20, tally
