"""Models that the ablation script scores without training them: beside arms, alone, with words, and only once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from eam_core.degradation import PRESETS, degrade
from eam_core.model.control import ControlParams, ControlStream
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import read_weights, save_weights
from train import ablate, ablation_models
from train.data import DataConfig, TrainingData
from train.evaluation.models import Model
from train.options import run_script

pytestmark = pytest.mark.usefixtures("few_steps")

ARM_WAYS = ("1 step from 0.7", "8 steps from 1")


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Names of the models that are loaded."""
    names: list[str] = []
    load = Model.load

    def counted(model: Model, device: str) -> Restorer:
        names.append(model.name)
        return load(model, device)

    monkeypatch.setattr(Model, "load", counted)
    return names


@pytest.fixture
def heard(monkeypatch, stand_ins) -> type:
    """Text encoders that are random; `asked` holds what the last model was told."""
    monkeypatch.setattr("eam_core.sd3.SD3TextEncoder", stand_ins.HashedText)
    return stand_ins.HashedText


@pytest.fixture
def small(parts, tmp_path) -> Path:
    """A control of the text-free base that samples in one step, in a file of its own."""
    torch.manual_seed(3)
    stream = ControlStream(ControlParams(depth=2, hidden_size=64))
    path = tmp_path / "small" / "control.safetensors"
    save_weights(path, {key: torch.randn(value.shape) * 0.2 for key, value in stream.state_dict().items()})
    return path


@pytest.fixture
def run(parts, tmp_path, monkeypatch):
    """Run the script on the small photos; returns the report's rows by name, cells by heading."""

    def run(table: str, *options: str, data: Path = parts.photos) -> dict[str, dict[str, str]]:
        files = ["--data", str(data), "--base", str(parts.base), "--autoencoder", str(parts.autoencoder)]
        folders = ["--run-dir", str(tmp_path / "runs"), "--out", str(tmp_path / "results")]
        fast = ["--size", "debug", "--steps", "4", "--seeds", "0", "--count", "1"]
        monkeypatch.setattr("sys.argv", ["ablate", table, *files, *folders, *fast, *options])
        ablate.main()
        lines = [line for line in report(tmp_path, table).splitlines() if line.startswith("| ")]
        header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return {row[0].split(",")[0]: dict(zip(header, row)) for row in rows}

    # One metric is enough here, and ST-LPIPS takes long to load; its scores are looked at where arms are trained.
    monkeypatch.setattr(ablation_models, "load_distance", lambda: None)
    return run


def report(tmp_path: Path, table: str) -> str:
    return (tmp_path / "results" / f"{table if table == 'models' else f'table{table}'}.md").read_text()


def mean(cell: str) -> float:
    return float(cell.split()[0])


def pictures(photos: Path):
    """The held-out picture [1, 3, 64, 64] with its inputs by degradation, made apart from the script."""
    config = DataConfig(data=(str(photos),), crop_sizes=(64,), held_out=3)
    batch = TrainingData(config, seed=5, batch_size=1).held_out_batch(1, 64)
    hr = batch.hr / 255
    return hr, [degrade(hr, 4, [PRESETS[name]], batch.seeds.tolist()) for name in ("plain", "light", "stock")]


def own_psnr(restorer: Restorer, photos: Path, **words: str) -> float:
    """Mean PSNR over the degradations of what a Restorer makes with its family's settings."""
    hr, inputs = pictures(photos)
    config = RestoreConfig.from_spec(restorer.spec, scale=4, **words)
    made = torch.cat([restorer.restore(lr, config) for lr in inputs])
    return float((-10 * (made - hr).square().mean((1, 2, 3)).log10()).mean())


def test_given_models_alone_are_one_command_that_trains_nothing(run, models, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "train_control", None)
    rows = run("models", "--restore", *models.options[:2], "--restore", *models.options[2:])
    assert list(rows) == ["eam", "controlnet", "dit4sr", "tsdsr"]
    for text in models.options:
        model = Model.parse(text)
        row, expected = rows[model.name], own_psnr(model.load("cpu"), parts.photos)
        assert mean(row["PSNR, own settings ↑"]) == pytest.approx(expected, abs=1e-3)
        assert "[" not in row["PSNR, own settings ↑"], "one picture has no interval"
        assert "images/s" not in row
        assert f"not trained here, base `{model.base.parent.name}/{model.base.name}`" in row["model"]
        assert {row[f"PSNR, {way} ↑"] == "-" for way in ARM_WAYS} == {model.name == "tsdsr"}
    text = report(tmp_path, "models")
    assert "no arms of an ablation" in text and "1 held-out picture of 64 px" in text and "claim" not in text
    assert "dit4sr: control" in text and "3 steps from 1, euler, CFG 8" in text and "no captions" in text
    assert [path.suffix for path in (tmp_path / "results").iterdir()] == [".md"]
    assert all(path.name.startswith("restored-") for path in (tmp_path / "runs").iterdir())


def test_a_trained_control_that_is_given_scores_as_its_arm_does(run, parts, tmp_path, monkeypatch):
    monkeypatch.undo()  # with every metric
    assert list(run("2", "--count", "2")) == ["DiT-ControlNet", "Psi-DiT"]
    arms = list((tmp_path / "runs").iterdir())
    trained = {path: (path / "summary.json").stat().st_mtime_ns for path in arms}
    given = [f"{path.name}={path / 'control.safetensors'},{parts.base},{parts.autoencoder}" for path in arms]
    rows = run("2", "--restore", *given, "--count", "2")
    assert list(rows) == ["DiT-ControlNet", "Psi-DiT", *(path.name for path in arms)]
    assert {path: (path / "summary.json").stat().st_mtime_ns for path in arms} == trained
    assert len((tmp_path / "results" / "table2.png").read_bytes()) > 5000
    for path in arms:
        scores, row = json.loads((path / "scores-none.json").read_text()), rows[path.name]
        assert len(scores) >= 2 and all(len(values) == 6 for values in scores.values())
        for name, values in scores.items():
            cell = next(cell for heading, cell in row.items() if heading.startswith(name))
            assert mean(cell) == pytest.approx(sum(values) / 6, abs=1e-3), name
        assert "[" in row["PSNR, own settings ↑"] and row["images/s"] == "-"
    assert rows["Psi-DiT"]["PSNR, own settings ↑"] == "-"


def test_pictures_are_restored_once_and_a_stopped_run_goes_on(run, small, parts, tmp_path, monkeypatch, loaded):
    given = ("--restore", f"m={small},{parts.base},{parts.autoencoder}", "--count", "2")
    score, restored = ablation_models._score_picture, []

    def stopped(*arguments):
        if len(restored) == 4:
            raise KeyboardInterrupt
        restored.append(arguments[3])
        return score(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ablation_models, "_score_picture", stopped)
        run("models", *given)
    (folder,) = (tmp_path / "runs").iterdir()
    store = folder / "scores.jsonl"
    assert len(store.read_text().splitlines()) == 4
    store.write_text(store.read_text()[:-20])  # half a line of a killed process
    counted = []
    monkeypatch.setattr(ablation_models, "_score_picture", lambda *a: counted.append(a[3]) or score(*a))
    whole = run("models", *given)
    assert counted == [1, 0, 1] and loaded == ["m", "m"]
    assert run("models", *given) == whole and len(loaded) == 2
    run("models", *given[:2], "--count", "3")
    assert counted[3:] == [2] * 3, "the first two pictures are known"
    shutil.rmtree(folder)
    assert run("models", *given) == whole


def test_changed_files_and_other_settings_are_scored_anew(run, small, parts, tmp_path, loaded):
    copy = tmp_path / "copy" / small.name
    shutil.copytree(small.parent, copy.parent)
    rest = f"{parts.base},{parts.autoencoder}"
    given, column = ("--restore", f"m={copy},{rest}"), "PSNR, own settings ↑"
    first = run("models", *given)["m"]
    assert run("models", "--restore", f"other={small},{rest}")["other"][column] == first[column]
    assert loaded == ["m"], "a copy is the same model"
    save_weights(copy, {key: value * 3 for key, value in read_weights(copy).items()})
    assert run("models", *given)["m"][column] != first[column] and len(loaded) == 2
    assert run("models", "--restore", f"m={small},{rest}")["m"][column] == first[column] and len(loaded) == 2
    run("models", *given, "--crop-size", "80")
    assert len(loaded) == 3 and len(list((tmp_path / "runs").iterdir())) == 3
    photos = tmp_path / parts.photos.name
    shutil.copytree(parts.photos, photos)
    run("models", *given, data=photos)
    assert len(loaded) == 3, "the same photos of another place"
    for path in photos.iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    run("models", *given, data=photos)
    assert len(loaded) == 4, "other photos under the same names"


def test_models_in_half_precision_score_nearly_the_same(run, models, tmp_path, monkeypatch):
    given = ("--restore", f"dit4sr={models.dit4sr}", "--run-dir")
    full = run("models", *given, str(tmp_path / "full"))["dit4sr"]

    def load(model: Model, device: str) -> Restorer:
        files = {name: getattr(model, name) for name in ("base", "control", "autoencoder", "text_encoders")}
        return Restorer.from_files(**files, device=device, dtype=torch.bfloat16)

    monkeypatch.setattr(Model, "load", load)
    half = run("models", *given, str(tmp_path / "half"))["dit4sr"]
    columns = [column for column in full if column.startswith("PSNR")]
    scores = [next((tmp_path / name).glob("*/scores.jsonl")).read_text() for name in ("full", "half")]
    assert len(columns) == 3 and scores[0] != scores[1]
    for column in columns:
        assert mean(half[column]) == pytest.approx(mean(full[column]), abs=0.2)


# Words


def test_models_with_text_are_told_the_captions_of_the_pictures(run, models, parts, tmp_path, heard, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(parts.photos, photos)
    for photo in parts.photos.iterdir():
        (photos / f"{photo.stem}.da.txt").write_text(f"da of {photo.stem}")
    given = ("--restore", f"eam={models.eam},{models.encoders}", f"tsdsr={models.tsdsr}", "--negative-prompt", "blur")
    rows = run("models", *given, "--restore-captions", "da", data=photos)
    assert "tsdsr: captions and negative prompt are left out, TSD-SR was trained" in capsys.readouterr().err
    negative, *captions = heard.asked[0]
    assert negative == "blur" and [text[:6] for text in captions] == ["da of "]
    assert "da captions, negative prompt 'blur'" in report(tmp_path, "models")
    restorer = Model.parse(f"eam={models.eam},{models.encoders}").load("cpu")
    expected = own_psnr(restorer, photos, prompt=captions[0], negative_prompt="blur")
    assert mean(rows["eam"]["PSNR, own settings ↑"]) == pytest.approx(expected, abs=1e-3)
    assert own_psnr(restorer, photos, prompt=captions[0]) != pytest.approx(expected, abs=0.01)


def test_arms_without_text_stand_beside_models_with_captions_from_a_folder(run, models, parts, tmp_path, heard):
    folder = tmp_path / "captions" / parts.photos.name
    folder.mkdir(parents=True)
    for photo in parts.photos.iterdir():
        (folder / f"{photo.stem}.sa.txt").write_text(f"sa of {photo.stem}")
    given = ("--restore", f"dit4sr={models.dit4sr},{models.encoders}", "--caption-dir", str(folder.parent))
    rows = run("2", *given)
    assert heard.asked[0][0] == "" and all(text.startswith("sa of ") for text in heard.asked[0][1:])
    assert list(rows) == ["DiT-ControlNet", "Psi-DiT", "dit4sr"]


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["models"], "expected models for 'models' and its options, got none; give --restore NAME="),
        (["2", "--negative-prompt", "x"], "got none; give --restore"),
        (["models", "--restore", "a=x,y"], "--restore: expected NAME=CONTROL,BASE,AUTOENCODER[,TEXT_ENCODERS]"),
        (["models", "--restore", "a=embedded", "a=embedded"], "different names, got 'a' twice"),
        (["models", "--restore", "a=none.safetensors,y,z"], "none.safetensors"),
        (["models", "--restore", "a=embedded", "--crop-size", "208"], "expected pictures of at least 208 x 208"),
    ],
)
def test_mistakes_get_one_sentence(options, message, run, capsys, monkeypatch):
    monkeypatch.setattr(ablate, "train_control", None)
    with pytest.raises(SystemExit) as end:
        run_script(lambda: run(*options))
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and len(error) == 1
