"""What strangers hand over ends in a sentence or a result: hundreds of cases of each kind, and all that ever failed.

The recorded run of 200,000 cases is tests/fuzz/run.py.
"""

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="expected the package hypothesis, found none; run pip install -e '.[dev]'")

from guard import Guard
from hypothesis import HealthCheck, given, settings
from targets import TARGETS, Target, quiet

CORPUS = Path(__file__).with_name("corpus")
NUM_CASES = 200
# Files are written and put on the disk, networks are built.
SLOW = {"folder_list": 60, "folder_text": 100, "header": 100, "network": 100}
# How many of a target's good inputs are whole ones; the others are good starts for bad ones.
GOOD = {
    "checkpoint": 0,
    "saved_tensor": 2,
    "shard_index": 1,
    "model_config": 2,
    "batch_list": 1,
    "folder_text": 2,
    "picture": 14,
    "answer": 3,
}
guard: list[Guard] = []


@pytest.fixture(scope="module", autouse=True)
def place():
    """A folder that cases may write to; audit hooks last as long as the process, so there is one for all."""
    with tempfile.TemporaryDirectory() as folder:
        guard.append(Guard(Path(folder)))
        yield Path(folder)


def run(target: Target, data: bytes, place: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=place) as folder, guard[-1].watching():
        accepted = quiet(target, data, Path(folder))
    assert guard[-1].found == []
    return accepted


@pytest.mark.parametrize("name", TARGETS)
def test_cases_are_refused_in_a_sentence_or_accepted(place, name):
    target, num_cases = TARGETS[name], SLOW.get(name, NUM_CASES)
    outcomes = []

    @settings(
        max_examples=num_cases, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(target.cases(target.good()))
    def case(data: bytes) -> None:
        outcomes.append(run(target, data, place))

    case()
    assert len(outcomes) >= num_cases


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_accepted(place, name):
    target = TARGETS[name]
    accepted = [run(target, data, place) for data in target.good()]
    assert sum(accepted) >= GOOD.get(name, len(accepted)), accepted


CASES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", CASES, ids=[f"{path.parent.name}/{path.name}" for path in CASES])
def test_cases_that_once_failed(place, path):
    if path.parent.name in TARGETS:
        run(TARGETS[path.parent.name], path.read_bytes(), place)


def test_the_guard_sees_what_it_should(place, tmp_path):
    def misbehave(data: bytes, folder: Path) -> None:
        (tmp_path / "outside").write_bytes(data)

    target = Target(name="bad", run=misbehave, good=list, cases=lambda good: None)
    with pytest.raises(AssertionError, match="outside"):
        run(target, b"x", place)

    def crash(data: bytes, folder: Path) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        run(Target(name="bad", run=crash, good=list, cases=lambda good: None), b"x", place)
