"""The MMDiT is SD3's, in keys, shapes and numbers: what `parity_probe.py` finds in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from comfy_host import comfy_root

PROBE = Path(__file__).with_name("parity_probe.py")
MAX_DIFFERENCE = 1e-5


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-P", str(PROBE), str(comfy_root())],
        cwd=tmp_path_factory.mktemp("probe"),
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("size", "num_keys", "detected", "dual"),
    [
        ("sd3-medium", 491, [24, 192, None], []),
        ("sd3.5-medium", 665, [24, 384, "rms"], list(range(13))),
        ("sd3.5-large", 923, [38, 192, "rms"], []),
    ],
)
def test_keys_and_shapes_are_comfyuis_at_the_real_sizes(report, size, num_keys, detected, dual):
    found = report["keys"][size]
    assert found["only_ours"] == found["only_theirs"] == found["shapes_differ"] == []
    assert found["keys"] == num_keys
    assert (found["detected"], found["detected_dual"]) == (detected, dual)


@pytest.mark.parametrize("variant", ["plain", "qk norm", "qk norm and dual attention"])
@pytest.mark.parametrize(
    ("reference", "sizes"),
    [
        ("comfyui", [[8, 8], [6, 14], [11, 14], [13, 5], [1, 1], [18, 18]]),
        ("diffusers", [[8, 8], [6, 14], [18, 18]]),
    ],
)
def test_numbers_are_those_of_comfyui_and_diffusers(report, reference, sizes, variant):
    runs = [run for run in report[reference] if run["variant"] == variant]
    assert [run["latents"] for run in runs] == sizes
    assert all(run["same_shape"] for run in runs)
    assert all(run["output_std"] > 0.5 for run in runs), "the comparison says nothing about outputs near zero"
    assert max(run["difference"] for run in runs) < MAX_DIFFERENCE, runs


@pytest.mark.parametrize("layout", ["bare", "prefixed"])
def test_comfyui_loads_a_small_saved_model_as_sd3(report, layout):
    found = report["saved"][layout]
    assert (found["config"], found["model"]) == ("SD3", "SD3")
    assert found["output_std"] > 0.5
    assert found["difference"] < MAX_DIFFERENCE
