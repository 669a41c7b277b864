"""The evaluation script: what it scores, resumes, refuses and shows, with real metrics where their packages are."""

import dataclasses
import importlib.util
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eam_core.errors import ImageError
from train import evaluate
from train.evaluation import sheet as sheets
from train.evaluation.metrics import METRICS, Metric, load_metrics
from train.evaluation.pictures import match_pictures
from train.evaluation.protocols import PROTOCOLS
from train.evaluation.statistics import bootstrap

with_pyiqa = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pyiqa", "stlpips_pytorch"))), reason="pyiqa or stlpips-pytorch is missing"
)


def smooth(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folders(tmp_path) -> Path:
    """Originals, their x4 inputs, and two methods; pictures 1, 2 and 10 of 96 x 64 pixels."""
    for name in ("hr", "lr", "good", "poor"):
        (tmp_path / name).mkdir()
    for name in ("1", "2", "10"):
        hr = smooth(int(name))
        hr.save(tmp_path / "hr" / f"{name}.png")
        hr.resize((24, 16), Image.Resampling.BICUBIC).save(tmp_path / "lr" / f"{name}.png")
        for method, edge in (("good", 3), ("poor", 6)):
            small = hr.resize((96 // edge, 64 // edge), Image.Resampling.BICUBIC)
            small.resize(hr.size, Image.Resampling.BICUBIC).save(tmp_path / method / f"{name}.png")
    return tmp_path


@pytest.fixture
def counted(monkeypatch) -> list[torch.Tensor]:
    """A metric "darkness" that needs no package; the list collects what it is given."""
    seen: list[torch.Tensor] = []

    def score(sr, _):
        seen.append(sr)
        return 1 - sr.mean().item()

    metric = Metric(
        name="darkness",
        title="Darkness",
        load=lambda device: (score, "darkness 1"),
        reference=None,
        lower_is_better=True,
    )
    monkeypatch.setitem(METRICS, "darkness", metric)
    return seen


def run(folders: Path, *options: str, out: str = "out", methods: tuple[str, ...] = ("good", "poor")) -> int:
    sr = [f"{method}={folders / method}" for method in methods]
    given = [] if "--protocol" in options else ["--protocol", "offline"]
    return evaluate.main(["--sr", *sr, "--out", str(folders / out), *given, *options])


def table(folders: Path, out: str = "out") -> dict[str, list[str]]:
    lines = (folders / out / "scores.md").read_text().split("## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


@with_pyiqa
def test_methods_are_scored_side_by_side_with_exact_ids(folders):
    options = ("--hr", str(folders / "hr"), "--metrics", "stlpips", "psnr", "ssim", "psnr-lr")
    assert run(folders, *options) == 0
    rows = table(folders)
    assert rows["method"] == ["ST-LPIPS alex ↓", "PSNR-Y ↑", "SSIM-Y ↑"]
    assert all(cell.startswith("**") for cell in rows["good"]) and "**" not in "".join(rows["poor"])
    report = (folders / "out" / "scores.md").read_text()
    assert report.count("*worse*") == 1 + 3 and "## Difference to good" in report
    assert "`stlpips`: pyiqa 0.1.16: stlpips, weights of stlpips-pytorch 0.0.2" in report
    assert "- PSNR-LR: missing, it needs the inputs (--lr)" in report
    weights = np.array([65.481, 128.553, 24.966]) / 255
    lumas = [np.asarray(Image.open(folders / kind / "1.png")) / 255 @ weights for kind in ("good", "hr")]
    expected = -10 * np.log10(np.mean((lumas[0] - lumas[1]) ** 2))
    line = (folders / "out" / "scores.csv").read_text().splitlines()[1].split(",")
    assert line[:2] == ["good", "1"] and float(line[4]) == pytest.approx(expected, abs=1e-3)


@with_pyiqa
def test_every_metric_of_the_offline_protocol_prefers_the_original():
    names = [name for name in PROTOCOLS["offline"].metrics if METRICS[name].reference == "hr"]
    loaded, missing = load_metrics(names, references={"hr"})
    assert {"ST-LPIPS alex", "ST-LPIPS vgg", "MS-SSIM", "GMSD", "VIF", "FSIM", "VSI"}.isdisjoint(missing)
    large, small = smooth(0, (192, 192)), smooth(0, (192, 192)).resize((32, 32), Image.Resampling.BICUBIC)
    hr, sr = (
        torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        for image in (large, small.resize((192, 192), Image.Resampling.BICUBIC))
    )
    for metric in loaded:
        gain = metric.score(hr, hr) - metric.score(sr, hr)
        assert gain < 0 if metric.metric.lower_is_better else gain > 0, metric.id


@with_pyiqa
def test_weights_are_never_fetched_unasked_and_a_failed_download_is_a_missing_metric(folders, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(folders / "empty"))
    attempts = []

    def unreachable(*address, **kwargs):
        attempts.append(address)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    names = ("--hr", str(folders / "hr"), "--metrics", "psnr", "lpips", "dists", "fid")
    assert run(folders, *names) == 0
    report = (folders / "out" / "scores.md").read_text()
    assert not attempts and table(folders)["method"] == ["PSNR-Y ↑"]
    assert "LPIPS: missing, its weights alexnet-owt-7be5be79.pth are not in hub/checkpoints" in report
    assert "DISTS: missing, its weights vgg16-397923af.pth" in report and "FID: missing, it compares" in report
    assert run(folders, *names, "--download") == 0
    assert attempts and "no such host" in (folders / "out" / "scores.md").read_text()


def test_missing_packages_are_reported_and_nothing_takes_their_place(folders, monkeypatch, counted, capsys):
    def load(device):
        raise ModuleNotFoundError("No module named 'rare'", name="rare")

    monkeypatch.setitem(METRICS, "rare", Metric(name="rare", title="Rare", load=load, reference=None))
    assert run(folders, "--metrics", "rare", "darkness") == 0
    assert table(folders)["method"] == ["Darkness ↓"]
    assert "Rare: missing, the package rare is not installed" in (folders / "out" / "scores.md").read_text()
    assert run(folders, "--metrics", "rare") == 2
    assert "got none (Rare: the package rare is not installed)" in capsys.readouterr().err


def test_a_stopped_run_goes_on_and_ends_like_an_uninterrupted_one(folders, monkeypatch, counted):
    options = ("--lr", str(folders / "lr"), "--metrics", "darkness", "psnr-lr")
    assert run(folders, *options, out="whole") == 0
    assert len(counted) == 6
    counted.clear()
    score = METRICS["darkness"].load("cpu")[0]

    def stopped_at_the_fourth(sr, _):
        if len(counted) == 3:
            raise KeyboardInterrupt
        return score(sr, _)

    stopping = dataclasses.replace(METRICS["darkness"], load=lambda device: (stopped_at_the_fourth, "darkness 1"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(METRICS, "darkness", stopping)
        run(folders, *options)
    store = folders / "out" / "scores.csv"
    assert len(store.read_text().splitlines()) == 4
    store.write_text(store.read_text()[:-3])  # the third line lost its end, and looks complete
    counted.clear()
    assert run(folders, *options) == 0
    assert len(counted) == 4
    for name in ("scores.csv", "scores.md"):
        assert (folders / "out" / name).read_text() == (folders / "whole" / name).read_text()
    counted.clear()
    assert run(folders, *options[:-1]) == 0 and not counted
    assert "psnr-lr [" in store.read_text(), "the score that was not asked for this time is lost"
    smooth(7).save(folders / "poor" / "2.png")
    assert run(folders, *options) == 0
    assert len(counted) == 1
    newer = dataclasses.replace(METRICS["darkness"], load=lambda device: (score, "darkness 2"))
    monkeypatch.setitem(METRICS, "darkness", newer)
    assert run(folders, *options) == 0 and len(counted) == 7


def test_bootstrap_is_the_percentile_interval_of_resampled_means():
    values = np.random.default_rng(1).gamma(2.0, size=40)
    draws = np.random.default_rng(2).choice(values, (20_000, 40)).mean(axis=1)
    interval = bootstrap(values)
    assert interval.mean == values.mean()
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), rel=0.02)
    assert interval == bootstrap(values) and bootstrap(values + 5).leaves_out_zero
    assert not bootstrap(values - values.mean()).leaves_out_zero
    assert bootstrap(values[:1]).mean == values[0] and not bootstrap(values[:1]).leaves_out_zero


def test_names_of_methods():
    assert evaluate.named_folder("ours=a/b") == ("ours", Path("a/b"))
    assert evaluate.named_folder("a/b/") == ("b", Path("a/b"))
    assert evaluate.named_folder("./cfg=4") == ("cfg=4", Path("cfg=4"))


def test_pictures_that_do_not_fit_are_refused_before_anything_is_scored(folders, counted, capsys):
    def refused(*options: str, **settings) -> str:
        assert run(folders, "--metrics", "darkness", *options, **settings) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not counted
        return error

    assert "different names, got 'good' twice" in refused(methods=("good", "good"))
    assert "expected one of good, poor, got 'best'" in refused("--against", "best")
    assert "brightness" in refused("--metrics", "brightness")
    assert "short edge of 1024 pixels, got 96 x 64" in refused("--protocol", "eam")
    assert "such as 1, got 3" in refused("--sheet-images", "3")
    (folders / "poor" / "2.jpg").write_bytes((folders / "poor" / "2.png").read_bytes())
    assert "one picture of each name" in refused()
    (folders / "poor" / "2.jpg").unlink()
    (folders / "lr" / "2.png").unlink()
    assert "1 of 3 are missing (2)" in refused("--lr", str(folders / "lr"))
    smooth(0, (32, 32)).save(folders / "lr" / "2.png")
    assert "of the shape of" in refused("--lr", str(folders / "lr"))
    smooth(0, (64, 96)).save(folders / "poor" / "2.png")
    assert "expected the size of" in refused()
    (folders / "poor" / "2.png").unlink()
    assert "1 of 3 are missing (2)" in refused()
    assert not (folders / "out" / "scores.csv").exists()


def test_the_eam_protocol_scores_the_central_square(folders, counted):
    protocol = dataclasses.replace(PROTOCOLS["eam"], square=64, metrics=("darkness",))
    assert PROTOCOLS["eam"].square == 1024
    scores = evaluate.evaluate({"good": folders / "good"}, folders / "out", protocol=protocol)
    centre = np.asarray(Image.open(folders / "good" / "1.png"), dtype=np.float32)[:, 16:80] / 255
    assert torch.equal(counted[0], torch.from_numpy(centre).permute(2, 0, 1)[None])
    assert scores.of("good", "darkness")[0] == pytest.approx(1 - centre.mean(), abs=1e-6)
    assert "the central square of 64 x 64 pixels" in (folders / "out" / "scores.md").read_text()


def test_psnr_against_the_input_is_high_for_what_reduces_to_it(folders):
    assert run(folders, "--lr", str(folders / "lr"), "--metrics", "psnr-lr", methods=("hr", "poor")) == 0
    hr, poor = (float(table(folders)[method][0].strip("*").split("*")[0].split()[0]) for method in ("hr", "poor"))
    assert hr > 50 > 35 > poor


def test_the_sheet_shows_the_crop_with_the_most_detail_unsmoothed(folders):
    calm = np.full((64, 96, 3), 128, dtype=np.uint8)
    calm[32:48, 64:80] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    Image.fromarray(calm).save(folders / "hr" / "2.png")
    pictures = match_pictures(
        {"good": folders / "good", "poor": folders / "poor"}, hr=folders / "hr", lr=folders / "lr"
    )
    drawn = sheets.comparison_sheet(pictures, ["2"])
    step = sheets.CELL + sheets.GAP
    assert drawn.size == (sheets.GAP + 5 * step, 2 * sheets.GAP + sheets.CELL + sheets.CAPTION)
    pixels = np.asarray(drawn)[sheets.GAP :][: sheets.CELL]
    for column, (folder, left, top, size) in enumerate(
        [("lr", 16, 8, 4), ("good", 64, 32, 16), ("poor", 64, 32, 16), ("hr", 64, 32, 16)], start=1
    ):
        source = np.asarray(Image.open(folders / folder / "2.png"))[top : top + size, left : left + size]
        shown = pixels[:, sheets.GAP + column * step :][:, : sheets.CELL]
        assert np.array_equal(shown, source.repeat(sheets.CELL // size, 0).repeat(sheets.CELL // size, 1)), folder
    assert (pixels[:, sheets.GAP : step] == sheets._BOX).all(axis=-1).any(), "no box on the whole picture"
    with pytest.raises(ImageError, match="such as 1, got 5"):
        sheets.comparison_sheet(pictures, ["5"])


def test_extremes_show_the_best_left_and_the_worst_right(folders, counted):
    for name, level in (("1", 60), ("2", 250), ("10", 5)):
        Image.new("RGB", (64, 64), (level,) * 3).save(folders / "hr" / f"{name}.png")
    assert run(folders, "--metrics", "darkness", "--extremes", "darkness", methods=("hr",)) == 0
    with Image.open(folders / "out" / "extremes.jpg") as image:
        drawn = np.asarray(image.convert("L"), dtype=int)
    assert abs(drawn[100, 100] - 250) < 3 and abs(drawn[100, -100] - 5) < 3
    assert run(folders, "--metrics", "darkness", "--extremes", "psnr", methods=("hr",)) == 2
