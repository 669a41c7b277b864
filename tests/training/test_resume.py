"""A run that was killed, stopped or damaged goes on exactly; what does not belong together is refused."""

import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eam_core.errors import EAMError
from eam_core.weight_files import read_weights
from train.options import parse_config
from train.recipes import RECIPES
from train.run_folder import RunFolder
from train.train_psi_dit import train_control

STEPS = 12
OPTIONS = ("--steps", str(STEPS), "--masked-steps", "6", "--validate-every", "0", "--num-workers", "1")


def train_here(parts, run_dir: Path, *options: str) -> None:
    train_control(parse_config(RECIPES, description="", argv=parts.options(run_dir, *OPTIONS, *options)))


def files_of(run_dir: Path) -> dict[str, Tensor]:
    """Return every tensor that a finished run leaves."""
    checkpoint = read_weights(run_dir / "checkpoints" / f"step-{STEPS:08d}.safetensors")
    exported = {f"exported.{k}": v for k, v in read_weights(run_dir / "control.safetensors").items()}
    # Copies: what is read lies in the file, which a test may go on to damage.
    return {name: value.clone() for name, value in {**checkpoint, **exported}.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differ, f"{len(differ)} of {len(one)} tensors differ, e.g. {differ[0]}"


@pytest.fixture(scope="module")
def uninterrupted(parts, script, tmp_path_factory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    status, text = script.run("train_psi_dit", parts.options(folder, *OPTIONS))
    assert status == 0, text
    return files_of(folder)


def last_logged_step(run_dir: Path) -> int:
    file = run_dir / "log.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def kill_after(process, run_dir: Path, step: int, number: int = signal.SIGKILL) -> None:
    """Send a signal as soon as the log has a step, at any moment of what the run does next."""
    deadline = time.monotonic() + 120
    while last_logged_step(run_dir) < step and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.Random(step).uniform(0, 0.1))
    process.send_signal(number)


@pytest.mark.parametrize("save_every", [1, 5])
def test_killed_again_and_again_it_ends_with_the_same_weights(parts, script, uninterrupted, tmp_path, save_every):
    options = parts.options(tmp_path, *OPTIONS, "--save-every", str(save_every))
    for step in (2, 5, 8):
        process = script.start("train_psi_dit", options)
        kill_after(process, tmp_path, step)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    status, text = script.run("train_psi_dit", options)
    assert status == 0, text
    assert "going on from step" in text
    assert_same(files_of(tmp_path), uninterrupted)
    logged = [entry["step"] for entry in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())]
    assert logged == sorted(logged), "steps that were done twice are logged twice"
    assert not list((tmp_path / "checkpoints").glob(".*.part"))


def test_asked_to_stop_it_saves_first_and_goes_on(parts, script, uninterrupted, tmp_path):
    options = parts.options(tmp_path, *OPTIONS, "--save-every", "100")
    process = script.start("train_psi_dit", options)
    kill_after(process, tmp_path, 3, signal.SIGTERM)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "Traceback" not in text and "is saved, the same command goes on from there" in text
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.safetensors")
    assert 3 <= int(checkpoint.stem.split("-")[1]) < STEPS
    status, text = script.run("train_psi_dit", options)
    assert status == 0, text
    assert_same(files_of(tmp_path), uninterrupted)


@pytest.mark.parametrize("damage", ["truncated", "bit", "missing", "note"])
def test_a_damaged_checkpoint_is_passed_over(parts, tmp_path, damage, caplog):
    train_here(parts, tmp_path, "--save-every", "5", "--keep-last", "3")
    before = files_of(tmp_path)
    last = tmp_path / "checkpoints" / f"step-{STEPS:08d}.safetensors"
    if damage == "truncated":
        os.truncate(last, last.stat().st_size // 2)
    elif damage == "bit":
        content = bytearray(last.read_bytes())
        content[-5] ^= 1
        last.write_bytes(content)
    elif damage == "missing":
        last.unlink()
    else:
        last.with_suffix(".json").write_text("{")
    (tmp_path / "control.safetensors").unlink()
    train_here(parts, tmp_path, "--save-every", "5", "--keep-last", "3")
    assert f"{last.name} is damaged" in caplog.text and "going back to the one before" in caplog.text
    assert_same(files_of(tmp_path), before)


def test_all_checkpoints_damaged_is_one_sentence(parts, tmp_path):
    train_here(parts, tmp_path)
    for file in (tmp_path / "checkpoints").glob("*.safetensors"):
        os.truncate(file, 10)
    with pytest.raises(EAMError, match=r"expected a whole checkpoint in .*, found 2 damaged; delete them"):
        train_here(parts, tmp_path)


def test_other_settings_do_not_go_on_from_a_run(parts, tmp_path):
    train_here(parts, tmp_path, "--seed", "3")
    refused = "expected the settings that the run in .* was started with, got "
    with pytest.raises(EAMError, match=refused + "seed 4 instead of 3; use those, or another --run-dir"):
        train_here(parts, tmp_path, "--seed", "4")
    with pytest.raises(EAMError, match=refused + "family 'controlnet' instead of 'psi_dit'; use"):
        train_here(parts, tmp_path, "--seed", "3", "--family", "controlnet")
    with pytest.raises(EAMError, match=refused + "mask_strategy 'random' instead of 'pms'; use"):
        train_here(parts, tmp_path, "--seed", "3", "--mask-strategy", "random")


def test_how_often_to_save_and_log_may_change(parts, tmp_path):
    train_here(parts, tmp_path)
    train_here(parts, tmp_path, "--save-every", "7", "--log-every", "3", "--keep-last", "1")


def test_another_architecture_does_not_go_on_from_a_checkpoint(parts, tmp_path):
    train_here(parts, tmp_path / "one")
    train_here(parts, tmp_path / "two", "--lr-attention", "cross")
    (tmp_path / "one" / "checkpoints").rename(tmp_path / "own")
    (tmp_path / "two" / "checkpoints").rename(tmp_path / "one" / "checkpoints")
    with pytest.raises(EAMError, match="it is of another architecture, use another --run-dir"):
        train_here(parts, tmp_path / "one")


def test_a_finished_run_stays_as_it_is(parts, tmp_path):
    train_here(parts, tmp_path)
    before = files_of(tmp_path)
    train_here(parts, tmp_path)
    assert_same(files_of(tmp_path), before)


def test_killed_between_its_last_checkpoint_and_the_export_it_still_exports(parts, tmp_path):
    train_here(parts, tmp_path)
    before, summary = files_of(tmp_path), json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").unlink()
    (tmp_path / "control.safetensors").write_bytes(b"of an earlier step")
    train_here(parts, tmp_path)
    assert_same(files_of(tmp_path), before)
    again = json.loads((tmp_path / "summary.json").read_text())
    assert (again["validation"], again["exported"]) == (summary["validation"], ["control.safetensors"])


def test_a_full_disk_is_one_sentence_and_keeps_the_checkpoint_before(parts, script, tmp_path):
    options = parts.options(tmp_path, *OPTIONS, "--save-every", "4", "--keep-last", "5")

    def small_disk() -> None:
        """Let no file grow beyond what the first part of a checkpoint takes: writing fails as on a full disk."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    process = script.start("train_psi_dit", options)
    kill_after(process, tmp_path, 5)
    process.communicate()
    kept = RunFolder(tmp_path).load_last()
    assert kept is not None
    status, text = script.run("train_psi_dit", options, preexec_fn=small_disk)
    assert status == 2
    assert "Traceback" not in text
    assert "could not write" in text.splitlines()[-1] and "free some space" in text.splitlines()[-1]
    again = RunFolder(tmp_path).load_last()
    assert again is not None and again.step == kept.step
    assert_same(again.tensors, kept.tensors)
