"""The ablation script: which settings its arms change, that it trains, scores and reports, and its statistics."""

import dataclasses
import json
import shutil

import pytest
import torch
from scipy import stats

from eam_core.denoiser import Text
from train import ablate
from train.ablation_plan import TABLES, arm_config, arms_for
from train.ablation_report import interval
from train.options import run_script
from train.recipes import RECIPES
from train.text_cache import TextCache


def test_the_papers_rows_are_there():
    names = {number: [arm.name for arm in table.arms] for number, table in TABLES.items()}
    assert set(names) == {"2", "3", "4", "5", "attention"}
    assert names["4"] == ["no mask", "fixed 0.50", "fixed 0.75", "fixed 0.85", "random 0.75-1.00", "PMS"]
    assert [len(names[number]) for number in ("2", "3", "5", "attention")] == [3, 4, 4, 4]
    tested = {(a.data["captions"], a.test_captions or a.data["captions"]) for a in TABLES["5"].arms}
    assert tested == {("da", "da"), ("da", "sa"), ("sa", "da"), ("sa", "sa")}


@pytest.mark.parametrize("recipe", ["tiny", "eam"])
@pytest.mark.parametrize("number", sorted(TABLES))
def test_arms_differ_from_each_other_and_in_nothing_else_than_they_say(recipe, number):
    base = RECIPES[recipe]()
    arms = arms_for(TABLES[number], base)
    configs = [dataclasses.asdict(arm_config(base, arm, seed=7, mask_share=0.5)) for arm in arms]
    assert len({json.dumps([c, a.test_captions]) for c, a in zip(configs, arms)}) == len(arms) >= 2
    for config in configs:
        assert config["loop"] == {**dataclasses.asdict(base.loop), "seed": 7}
        assert config["pairs"] == dataclasses.asdict(base.pairs)
    assert (number in ("2", "attention") and recipe == "eam") == (len(arms) < len(TABLES[number].arms))


def test_masks_take_their_share_of_the_steps_and_end():
    base = RECIPES["tiny"]()
    for arm in TABLES["4"].arms:
        objective = arm_config(base, arm, seed=0, mask_share=0.7).objective
        assert objective.masked_steps == (0 if arm.name == "no mask" else round(0.7 * base.loop.steps))


def test_interval_is_students():
    values = [1.0, 2.0, 4.0]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def arguments(parts, tmp_path, table: str, *options: str) -> list[str]:
    files = ["--data", str(parts.photos), "--base", str(parts.base), "--autoencoder", str(parts.autoencoder)]
    folders = ["--run-dir", str(tmp_path / "runs"), "--out", str(tmp_path / "results")]
    small = ["--size", "debug", "--steps", "6", "--seeds", "0", "1", "--count", "2"]
    return ["ablate", table, *files, *folders, *small, *options]


def test_a_table_is_trained_scored_and_reported_and_shares_runs_with_the_next(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", arguments(parts, tmp_path, "2", "--jobs", "1"))
    ablate.main()
    report = (tmp_path / "results" / "table2.md").read_text()
    rows = [line for line in report.splitlines() if line.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == ["DiT-ControlNet", "Psi-DiT"]
    assert "PSNR, 1 step from 0.7 ↑" in report and "±" in rows[0] and "PSNR, 8 steps from 1" in report
    assert (tmp_path / "results" / "table2.png").stat().st_size > 5000
    assert len(list((tmp_path / "runs").iterdir())) == 4
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("summary.json")}
    monkeypatch.setattr("sys.argv", arguments(parts, tmp_path, "3", "--jobs", "2"))
    ablate.main()
    assert len(list((tmp_path / "runs").iterdir())) == 4 + 6
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished runs were trained again"


def test_prompts_need_a_base_that_knows_text(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", arguments(parts, tmp_path, "5"))
    with pytest.raises(SystemExit) as end:
        run_script(ablate.main)
    assert end.value.code == 2
    assert "expected a recipe with text for table 5, got 'debug'" in capsys.readouterr().err


def test_prompts_are_trained_and_tested_as_the_arms_say(parts, tmp_path, monkeypatch):
    shutil.copytree(parts.photos, tmp_path / "photos")
    cache = TextCache.create(tmp_path / "cache", "random")
    generator = torch.Generator().manual_seed(0)
    captions = [""]
    for photo in parts.photos.iterdir():
        for kind in ("sa", "da"):
            captions.append(f"{kind} of {photo.stem}")
            (tmp_path / "photos" / f"{photo.stem}.{kind}.txt").write_text(captions[-1])
    for caption in captions:
        text = Text(torch.randn(1, 5, 64, generator=generator), torch.randn(1, 64, generator=generator))
        cache.write(caption, text)
    options = ("--text-cache", str(cache.folder), "--data", str(tmp_path / "photos"), "--seeds", "0")
    monkeypatch.setattr("sys.argv", arguments(parts, tmp_path, "5", *options))
    ablate.main()
    runs = {run.name: sorted(file.name for file in run.glob("scores-*")) for run in (tmp_path / "runs").iterdir()}
    assert list(runs.values()) == [["scores-da.json", "scores-sa.json"]] * 2
    scores = [(tmp_path / "runs" / run / name).read_text() for run, names in runs.items() for name in names]
    assert len(set(scores)) == 4
    report = (tmp_path / "results" / "table5.md").read_text()
    assert "DA, tested with SA" in report and "SA, tested with DA" in report
