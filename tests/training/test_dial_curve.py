"""The dial curve: one row of scores per degradation and point, and a plot; a folder that is no test set is refused."""

import csv

import pytest
import torch
from PIL import Image

from eam_core.images import load_image, save_image
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from train import dial_curve, prepare_test_set
from train.metrics import luma_metric


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["dial_curve", *map(str, arguments)])
    dial_curve.main()


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("set")
    for seed in range(3):
        coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        save_image(torch.nn.functional.interpolate(coarse, size=96, mode="bicubic").clamp(0, 1), source / f"{seed}.png")
    assert prepare_test_set.main(["folder", "--source", str(source), "--out", str(out)]) == 0
    return out


def test_every_point_of_every_degradation_is_measured_and_drawn(test_set, tmp_path, monkeypatch):
    monkeypatch.setattr(dial_curve, "FIDELITIES", (0.0, 1.0))
    monkeypatch.setattr(dial_curve, "STEPS", (1, 2))
    run(monkeypatch, test_set, "--out", tmp_path, "--count", "2")
    with open(tmp_path / "dial.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["input"], row["steps"], row["fidelity"]) for row in rows] == [
        (name, steps, fidelity)
        for name in ("light", "plain", "stock")
        for steps, fidelity in (("1", "0.0"), ("1", "1.0"), ("1", "0.0"), ("2", "0.0"))
    ]
    with Image.open(tmp_path / "dial.png") as plot:
        assert plot.width > 1000

    restorer, psnr = Restorer.embedded(), luma_metric("psnr")
    config = RestoreConfig.from_spec(restorer.spec, fidelity=1.0)
    scores = []
    for name in ("0.png", "1.png"):
        restored = restorer.restore(load_image(test_set / "lr-plain" / name).rgb, config)
        scores.append(psnr(restored, load_image(test_set / "hr" / name).rgb))
    measured = next(row for row in rows if (row["input"], row["fidelity"]) == ("plain", "1.0"))
    assert float(measured["psnr"]) == pytest.approx(torch.cat(scores).mean().item(), abs=1e-3)


def test_a_folder_that_is_no_test_set_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(Exception, match=r"expected a test set with folders hr and lr-\*, found none; make one with"):
        run(monkeypatch, tmp_path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
