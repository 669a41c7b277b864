"""The recipes of train_psi_dit and their command line: complete, explained, and strict."""

import dataclasses
import json

import pytest

from eam_core.checkpoint import build_control, check_pair, mmdit_params
from eam_core.presets import EMBEDDED
from eam_core.weight_files import read_weights
from train.options import parse_config
from train.recipes import RECIPES


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_a_complete_config(name):
    config = RECIPES[name]()
    assert config.recipe == name
    assert json.loads(json.dumps(dataclasses.asdict(config)))


def test_recipes_hold_the_papers_numbers():
    eam, consissr, controlnet = (RECIPES[name]() for name in ("eam", "consissr", "controlnet"))
    assert (eam.loop.steps, eam.data.crop_sizes, eam.objective.mask.strategy) == (30_000, (1024,), "pms")
    assert 0 < eam.objective.masked_steps < eam.loop.steps
    assert (consissr.objective.tala_exponent, bool(consissr.parts.image_encoder)) == (10, True)
    assert (controlnet.parts.family, controlnet.objective.masked_steps, controlnet.loop.steps) == (
        "controlnet",
        0,
        80_000,
    )


def test_debug_needs_nothing_but_photos(parts, script, tmp_path):
    status, text = script.run("train_psi_dit", ["debug", "--data", str(parts.photos), "--run-dir", str(tmp_path)])
    assert status == 0, text
    control = build_control(read_weights(tmp_path / "control.safetensors"), "control")
    check_pair(mmdit_params(read_weights(EMBEDDED.base)), control.params, "control")


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as end:
        parse_config(RECIPES, description="", argv=["debug", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in text.split(" --")[1:]:
        words = option.partition("(default")[0].split()
        assert len(words) > 3, f"--{option[:60]} is not explained"
    assert "--mask-strategy" in text and "--tala-exponent" in text and "--crop-sizes" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--leraning-rate", "1"], "unrecognized arguments: --leraning-rate 1"),
        (["--save-evry", "1"], "did you mean --save-every?"),
        (["--steps", "0"], "expected steps of at least 1, got 0"),
        (["--ema", "1.5"], "expected ema in [0, 1), got 1.5"),
        (["--lr-attention", "both"], "invalid choice: 'both'"),
        (["--presets", "plain"], "expected one weight per preset ('plain',), got"),
        (["--crop-sizes", "100"], "expected crop_sizes that are multiples of 16, got"),
        (["--masked-steps", "9"], "expected masked_steps of at most steps 4, got 9"),
        (["--mask-ratio", "2"], "expected ratio in [0, 1], got 2"),
        (["--scale", "9"], "expected a scale from 2 to 8, got 9"),
        (["--text-cache", "somewhere"], "expected captions 'sa' or 'da' with a text_cache, got 'none'"),
        (["--val-sigma-start", "2"], "expected sigma_start in"),
    ],
)
def test_a_bad_setting_is_one_sentence(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse_config(RECIPES, description="", argv=["debug", *options])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
