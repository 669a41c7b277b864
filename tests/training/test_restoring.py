"""Models that evaluation restores first: all families side by side, words for those with text, what is not redone."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eam_core import cli
from train import evaluate
from train.evaluation import models as models_module
from train.evaluation import restoring
from train.evaluation.metrics import METRICS, Metric

pytestmark = pytest.mark.usefixtures("few_steps")

NAMES = ("eam", "controlnet", "dit4sr", "tsdsr")


def psnr(sr: torch.Tensor, hr: torch.Tensor | None) -> float:
    assert hr is not None
    return -10 * float((sr - hr).square().mean().log10())


@pytest.fixture(autouse=True)
def plain_psnr(monkeypatch):
    """A metric that needs no package."""
    metric = Metric(name="plain", title="Plain PSNR", load=lambda device: (psnr, "plain 1"), decimals=4)
    monkeypatch.setitem(METRICS, "plain", metric)


@pytest.fixture
def folders(tmp_path) -> Path:
    """Two originals of 96 x 64 pixels in hr, and their x4 inputs in lr."""
    generator = np.random.default_rng(0)
    for kind in ("hr", "lr"):
        (tmp_path / kind).mkdir()
    for name in ("1", "2"):
        noise = Image.fromarray(generator.integers(0, 256, (16, 24, 3), dtype=np.uint8))
        hr = noise.resize((96, 64), Image.Resampling.BICUBIC)
        hr.save(tmp_path / "hr" / f"{name}.png")
        hr.resize((24, 16), Image.Resampling.BICUBIC).save(tmp_path / "lr" / f"{name}.png")
    return tmp_path


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Names of the models that are loaded."""
    names: list[str] = []
    load = models_module.Model.load

    def counted(model, device):
        names.append(model.name)
        return load(model, device)

    monkeypatch.setattr(models_module.Model, "load", counted)
    return names


@pytest.fixture
def heard(monkeypatch, stand_ins) -> type:
    """Text encoders that are random; `asked` holds what the last model was told."""
    monkeypatch.setattr("eam_core.sd3.SD3TextEncoder", stand_ins.HashedText)
    return stand_ins.HashedText


def run(folders: Path, *options: str) -> int:
    lr, hr, out = (str(folders / name) for name in ("lr", "hr", "out"))
    fixed = ["--lr", lr, "--hr", hr, "--out", out, "--protocol", "offline", "--metrics", "plain"]
    return evaluate.main([*fixed, *options])


def pixels(folders: Path, model: str, picture: str = "1") -> np.ndarray:
    return np.asarray(Image.open(folders / "out" / "restored" / model / f"{picture}.png"))


def test_all_families_stand_side_by_side_with_what_the_command_line_makes_of_the_inputs(folders, models):
    assert run(folders, "--restore", *models.options[:2], "--restore", *models.options[2:]) == 0
    lines = (folders / "out" / "scores.csv").read_text().splitlines()[1:]
    scores = {tuple(line.split(",")[:2]): float(line.split(",")[3]) for line in lines}
    assert {name for name, _ in scores} == set(NAMES) and len(scores) == 8
    report = (folders / "out" / "scores.md").read_text()
    assert all(f"| {name} |" in report for name in NAMES)
    for name in NAMES:
        control, base, autoencoder = getattr(models, name).split(",")
        files = ["--control", control, "--base", base, "--autoencoder", autoencoder]
        paths = [str(folders / "lr" / "1.png"), str(folders / f"{name}.png")]
        assert cli.main(["upscale", *paths, *files, "--device", "cpu"]) == 0
        made, original = (Image.open(folders / file) for file in (f"{name}.png", "hr/1.png"))
        assert np.array_equal(np.asarray(made), pixels(folders, name)), name
        tensors = [torch.from_numpy(np.array(each)).float() / 255 for each in (made, original)]
        assert scores[name, "1"] == pytest.approx(psnr(*tensors), abs=1e-4)
    assert len({round(scores[name, "1"], 3) for name in NAMES}) == 4


def test_only_what_is_missing_or_changed_is_restored_again(folders, loaded):
    command = ("--restore", "tiny=embedded")
    assert run(folders, *command) == 0
    results = [folders / "out" / "restored" / "tiny" / f"{name}.png" for name in ("1", "2")]
    assert [Image.open(path).size for path in results] == [(96, 64)] * 2
    before = [path.stat().st_mtime_ns for path in results]
    assert run(folders, *command) == 0 and loaded == ["tiny"], "it was loaded though nothing was missing"
    results[1].unlink()
    assert run(folders, *command) == 0
    assert results[0].stat().st_mtime_ns == before[0] and results[1].exists()
    shutil.copy(folders / "lr" / "1.png", folders / "lr" / "2.png")
    assert run(folders, *command) == 0
    assert results[0].stat().st_mtime_ns == before[0] and len(loaded) == 3
    assert np.array_equal(pixels(folders, "tiny", "2"), pixels(folders, "tiny", "1"))


def test_a_run_that_was_stopped_goes_on_at_its_picture(folders, monkeypatch, loaded):
    save = restoring.save_image

    def stopped(picture, path):
        if path.stem == "2":
            raise KeyboardInterrupt
        save(picture, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(restoring, "save_image", stopped)
        run(folders, "--restore", "tiny=embedded")
    first = folders / "out" / "restored" / "tiny" / "1.png"
    before = first.stat().st_mtime_ns
    assert run(folders, "--restore", "tiny=embedded") == 0
    assert first.stat().st_mtime_ns == before and pixels(folders, "tiny", "2").any() and len(loaded) == 2


def test_results_of_other_files_or_settings_are_refused(folders, models, tmp_path, capsys, heard):
    shutil.copytree(Path(models.tsdsr.split(",")[0]), tmp_path / "tsdsr")
    tsdsr = f"m={tmp_path / 'tsdsr'},{models.tsdsr.split(',', 1)[1]}"
    eam = f"e={models.eam},{models.encoders}"
    assert run(folders, "--restore", tsdsr, eam) == 0
    capsys.readouterr()

    def refused(*options: str) -> str:
        assert run(folders, *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "expected results of the same files and settings" in error
        return error

    assert "(scale)" in refused("--restore", tsdsr, "--scale", "2")
    assert "(negative_prompt)" in refused("--restore", eam, "--negative-prompt", "blur")
    assert "(files)" in refused("--restore", f"m={models.eam}")
    beside = tmp_path / "tsdsr" / "embeddings.safetensors"
    beside.write_bytes(beside.read_bytes()[:-4] + bytes(4))
    assert "(files)" in refused("--restore", tsdsr), "a file beside the control has changed"


def test_large_files_are_known_by_size_and_time(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    small = models_module.content_id(path)
    os.utime(path, ns=(0, 0))
    assert models_module.content_id(path) == small
    monkeypatch.setattr(models_module, "HASHED_BYTES", 2)
    large = models_module.content_id(path)
    os.utime(path, ns=(0, 1000))
    assert large == "3 bytes of 0" and models_module.content_id(path) == "3 bytes of 1000"


# Words


def write_captions(folder: Path, kind: str = "sa", names: tuple[str, ...] = ("1", "2")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.{kind}.txt").write_text(f"{kind} of {name}\n")
    return folder


def test_captions_and_negative_prompt_guide_as_on_the_command_line(folders, models, heard, capsys):
    control, base, autoencoder = models.eam.split(",")
    eam = f"eam={models.eam},{models.encoders}"
    write_captions(folders / "captions" / "lr")
    options = ("--caption-dir", str(folders / "captions"), "--negative-prompt", "blur")
    others = (f"plain={models.controlnet}", f"tsdsr={models.tsdsr}", f"dit4sr={models.dit4sr},{models.encoders}")
    assert run(folders, "--restore", eam, *others, *options) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert [line.split(":")[0] for line in said] == ["plain", "tsdsr"]
    assert "has no text encoders" in said[0] and "TSD-SR was trained with one text for all" in said[1]
    assert heard.asked[0] == ["blur", "sa of 1", "sa of 2"], "each prompt would load the encoders anew"
    files = ["--control", control, "--base", base, "--autoencoder", autoencoder, "--text-encoders", models.encoders]
    for prompt in ("sa of 1", "sa of 2"):
        prompts = ["--prompt", prompt, "--negative-prompt", "blur", "--device", "cpu"]
        paths = [str(folders / "lr" / f"{prompt[-1]}.png"), str(folders / "made.png")]
        assert cli.main(["upscale", *paths, *map(str, files), *prompts]) == 0
        assert np.array_equal(np.asarray(Image.open(folders / "made.png")), pixels(folders, "eam", prompt[-1]))
    note = json.loads((folders / "out" / "restored" / "eam" / "restored.json").read_text())
    assert (note["captions"], note["negative_prompt"]) == ("sa", "blur")
    assert note["pictures"]["1"]["prompt"] == "sa of 1"


def test_a_changed_caption_restores_its_picture_alone(folders, models, heard, loaded):
    captions = write_captions(folders / "flat")
    eam = ("--restore", f"eam={models.eam},{models.encoders}", "--caption-dir", str(captions))
    assert run(folders, *eam) == 0
    before = [pixels(folders, "eam", name) for name in ("1", "2")]
    (captions / "2.sa.txt").write_text("something else")
    assert run(folders, *eam) == 0
    assert heard.asked[0] == ["", "something else"] and len(loaded) == 2
    assert np.array_equal(pixels(folders, "eam", "1"), before[0])
    assert not np.array_equal(pixels(folders, "eam", "2"), before[1])


def test_captions_beside_the_inputs_and_of_either_kind(folders, models, heard, capsys):
    write_captions(folders / "lr", "da")
    eam = ("--restore", f"eam={models.eam},{models.encoders}")
    assert run(folders, *eam, "--captions", "da") == 0
    assert heard.asked[0] == ["", "da of 1", "da of 2"]
    write_captions(folders / "some", names=("1",))
    capsys.readouterr()
    assert run(folders, *eam, "--caption-dir", str(folders / "some")) == 2
    error = capsys.readouterr().err
    assert "2.png: expected its caption 2.sa.txt in" in error and "1 of 2 pictures" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected results to score, got none"),
        (["--restore", "a=embedded"], "--restore: expected --lr"),
        (["--lr", "lr", "--restore", "embedded"], "got 'embedded'"),
        (["--lr", "lr", "--restore", "a=x,y"], "got 'a=x,y'"),
        (["--lr", "lr", "--restore", "../a=embedded"], "expected NAME=CONTROL"),
        (["--lr", "lr", "--restore", "a=embedded", "a=embedded"], "different names, got 'a' twice"),
        (["--lr", "nowhere", "--restore", "a=embedded"], "nowhere"),
        (["--sr", "x", "--caption-dir", "y"], "expected --restore with them"),
        (["--sr", "x", "--negative-prompt", "y"], "expected --restore with them"),
    ],
)
def test_mistakes_in_what_to_restore_get_one_sentence(options, message, tmp_path, capsys):
    assert evaluate.main(["--protocol", "offline", "--out", str(tmp_path / "out"), *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_inputs_of_one_name_are_refused(folders, models, capsys):
    shutil.copy(folders / "lr" / "1.png", folders / "lr" / "1.jpg")
    assert run(folders, "--restore", f"a={models.eam}") == 2
    assert "expected one picture of each name, found 1.jpg as well" in capsys.readouterr().err


def test_missing_files_get_one_sentence(folders, models, capsys):
    for text in (f"a=none.safetensors,{models.eam.split(',', 1)[1]}", f"a={models.eam.split(',')[0]},none,none"):
        assert run(folders, "--restore", text) == 2
        err = capsys.readouterr().err
        assert "none" in err and err.count("\n") == 1
    words = ("--restore", f"a={models.eam},{models.encoders}", "--caption-dir", "nowhere")
    assert run(folders, *words) == 2
    assert "expected a folder, found none at nowhere" in capsys.readouterr().err
