"""The stages of the embedded default: their debug recipes from photos to weights, and their command lines."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from eam_core.checkpoint import build_autoencoder, build_control, build_mmdit, check_pair
from eam_core.loading import spec_of
from eam_core.model.autoencoder import SD3_SCALE
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import read_metadata, read_weights, save_weights
from train import pack_embedded, train_autoencoder, train_base, train_few_step, train_psi_dit
from train.control_task import ControlTask
from train.objective import draw
from train.options import parse_config
from train.pairs import grid_strength
from train.recipes import RECIPES


class Stages(NamedTuple):
    """Folders of the stages' runs."""

    autoencoder: Path
    cleaner: Path
    base: Path
    control: Path
    few_step: Path


def run_main(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    module = importlib.import_module(f"train.{name}")
    monkeypatch.setattr("sys.argv", [name, *arguments])
    module.main()


@pytest.fixture(scope="module")
def stages(parts, tmp_path_factory) -> Stages:
    """What `make weights RECIPE=debug` leaves, from photos that are there already."""
    runs = tmp_path_factory.mktemp("weights")
    (Path(parts.photos) / "photos.json").write_text("[]")
    variables = {"RECIPE": "debug", "DATA": parts.photos, "RUNS": runs, "PY": sys.executable}
    command = ["make", "-o", "metrics", "weights", *(f"{name}={value}" for name, value in variables.items())]
    made = subprocess.run(command, cwd=Path(train_base.__file__).parents[1], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    return Stages(*(runs / name for name in Stages._fields))


@torch.no_grad()
def test_the_packed_files_restore_a_picture(stages):
    packed = stages.base.parent / "packed"
    files = {name: packed / getattr(EMBEDDED, name).name for name in ("base", "control", "autoencoder")}
    assert all(weight.dtype == torch.float16 for weight in read_weights(files["control"]).values())
    restorer = Restorer.from_files(**files)
    result = restorer.restore(torch.rand(1, 3, 24, 40), RestoreConfig.from_spec(restorer.spec, tile=128))
    assert result.shape == (1, 3, 96, 160) and result.std() > 0.01


def test_files_load_and_fit_together(stages):
    autoencoder = build_autoencoder(read_weights(stages.autoencoder / "autoencoder.safetensors"), "autoencoder")
    base = build_mmdit(read_weights(stages.base / "base.safetensors"), "base")
    assert autoencoder.params == train_autoencoder.debug().params
    assert base.params == train_base.debug().params
    for folder in (stages.control, stages.few_step):
        check_pair(base.params, build_control(read_weights(folder / "control.safetensors"), "x").params, "control")
    build_autoencoder(read_weights(stages.few_step / "autoencoder.safetensors"), "tuned")


def test_a_base_says_that_it_knows_no_text(stages):
    assert spec_of(stages.base / "base.safetensors") is EMBEDDED


@pytest.mark.parametrize("stage", Stages._fields)
def test_every_stage_logs_finite_losses_and_notes_how_it_was_made(stages, stage):
    folder = getattr(stages, stage)
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [entry for entry in entries if "loss" in entry]
    assert losses and all(math.isfinite(value) for entry in entries for value in entry.values())
    assert any(name.startswith("validation/") for entry in entries for name in entry)
    summary = json.loads((folder / "summary.json").read_text())
    for file in summary["exported"]:
        notes = json.loads(read_metadata(folder / file)["training"])
        assert notes["step"] == summary["steps"] == notes["loop"]["steps"]


def test_the_second_phase_of_the_autoencoder_leaves_its_latents(stages):
    linear = read_weights(stages.autoencoder / "linear" / "autoencoder.safetensors")
    final = read_weights(stages.autoencoder / "autoencoder.safetensors")
    assert torch.equal(linear["encoder.weight"], final["encoder.weight"])
    assert torch.equal(linear["encoder.bias"], final["encoder.bias"])
    assert not torch.equal(linear["decoder.leave.weight"], final["decoder.leave.weight"])


def test_training_the_cleaner_moves_nothing_else(stages):
    before, after = (read_weights(f / "autoencoder.safetensors") for f in (stages.autoencoder, stages.cleaner))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"cleaner"}


def test_few_step_tuning_moves_control_and_decoder_but_not_the_encoder(stages):
    before, after = (read_weights(f / "control.safetensors") for f in (stages.control, stages.few_step))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    before, after = (read_weights(f / "autoencoder.safetensors") for f in (stages.cleaner, stages.few_step))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


@torch.no_grad()
@pytest.mark.parametrize("options", [(), ("--local-heads", "1"), ("--family", "controlnet")], ids=str)
def test_training_starts_as_the_base_itself(parts, options):
    config = parse_config(RECIPES, description="", argv=parts.options("unused", *options))
    model = ControlTask(config).module.model
    latents, lr = torch.randn(2, 2, 16, 7, 10)
    given = latents, torch.tensor([900.0, 100.0]), torch.zeros(2, 4, 64), torch.zeros(2, 64)
    assert torch.equal(model(*given, lr), model.base(*given))


def test_without_text_it_trains_on_the_tokens_that_restoring_without_text_gives(parts, tmp_path):
    base, autoencoder = tmp_path / "base.safetensors", str(parts.autoencoder)
    save_weights(base, read_weights(parts.base))  # without the note that it knows no text, as SD3's own files
    config = parse_config(RECIPES, description="", argv=parts.options("unused", "--base", str(base)))
    module = ControlTask(config).module
    control = tmp_path / "control.safetensors"
    save_weights(control, module.model.control.state_dict())
    (restoring,) = Restorer.from_files(base=base, control=control, autoencoder=autoencoder).text.encode([""])
    for ours, theirs in zip(module.texts([""], torch.tensor([False])), restoring):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_substituted_start_is_trained_towards_the_photo(parts):
    """With TALA at every sample the loss of the velocity that leads to the HR latents is zero."""
    from train.objective import losses
    from train.pairs import make_pairs

    config = parse_config(RECIPES, description="", argv=parts.options("unused", "--tala-exponent", "0"))
    module = ControlTask(config).module
    hr, seeds = torch.rand(3, 3, 64, 64), torch.tensor([1, 2, 3])
    pairs = make_pairs(hr, seeds, config.pairs, module.autoencoder)
    draws = draw(pairs, seeds, config.objective)
    assert torch.equal(draws.start, pairs.lr_latents)
    right = (draws.x - pairs.hr_latents) / draws.sigma[:, None, None, None]
    for loss in ("velocity", "denoised"):
        assert losses(right, draws, pairs, loss, module.autoencoder)["loss"].max() < 1e-6
        assert losses(right + 1, draws, pairs, loss, module.autoencoder)["loss"].min() > 1e-8


@torch.no_grad()
def test_the_control_is_trained_on_the_cleaned_input_and_on_the_photo_as_it_is(parts):
    from train.pairs import make_pairs

    config = parse_config(RECIPES, description="", argv=parts.options("unused"))
    autoencoder, hr, seeds = ControlTask(config).module.autoencoder, torch.rand(2, 3, 64, 64), torch.tensor([1, 2])
    before = make_pairs(hr, seeds, config.pairs, autoencoder)
    autoencoder.cleaner.leave.bias.fill_(0.5)
    after = make_pairs(hr, seeds, config.pairs, autoencoder)
    assert torch.equal(before.hr_latents, after.hr_latents)
    torch.testing.assert_close(
        after.lr_latents - before.lr_latents, torch.full_like(before.lr_latents, 0.5 * SD3_SCALE)
    )


def test_a_sample_is_drawn_from_its_own_seed_alone(parts):
    from train.pairs import make_pairs

    config = parse_config(RECIPES, description="", argv=parts.options("unused"))
    module = ControlTask(config).module
    hr, seeds = torch.rand(3, 3, 64, 64), torch.tensor([5, 6, 7])
    together = draw(make_pairs(hr, seeds, config.pairs, module.autoencoder), seeds, config.objective)
    alone = draw(make_pairs(hr[1:2], seeds[1:2], config.pairs, module.autoencoder), seeds[1:2], config.objective)
    assert torch.equal(together.sigma[1:2], alone.sigma)
    assert torch.equal(together.noise[1:2], alone.noise)
    torch.testing.assert_close(together.x[1:2], alone.x, atol=1e-5, rtol=1e-5)


def test_text_is_dropped_as_often_as_asked(parts):
    config = parse_config(RECIPES, description="", argv=parts.options("unused", "--null-text", "0.3"))
    from train.pairs import Pairs

    count = 600
    latents = torch.zeros(count, 1, 2, 2)
    drawn = draw(Pairs(latents, latents, latents, latents), torch.arange(count), config.objective)
    assert abs(drawn.drop_text.float().mean().item() - 0.3) < 0.06


def test_options_override_the_recipe_at_any_depth(parts, stages, tmp_path, monkeypatch):
    files = ["--data", str(parts.photos), "--autoencoder", str(stages.autoencoder / "autoencoder.safetensors")]
    options = ["--hidden-size", "64", "--depth", "1", "--steps", "2", "--batch-size", "1"]
    run_main("train_base", monkeypatch, "debug", *files, "--run-dir", str(tmp_path), *options)
    params = build_mmdit(read_weights(tmp_path / "base.safetensors"), "base").params
    assert (params.hidden_size, params.depth) == (64, 1)


@pytest.mark.parametrize(
    ("script_module", "options", "message"),
    [
        (train_base, ["debug", "--hidden-size", "100"], "expected hidden_size to be a multiple of 64, got 100"),
        (train_base, ["debug", "--depth", "many"], "argument --depth: invalid int value: 'many'"),
        (train_base, ["huge"], "invalid choice: 'huge'"),
        (train_base, [], "the following arguments are required: recipe"),
        (train_autoencoder, ["debug", "--nonsense", "1"], "unrecognized arguments: --nonsense 1"),
        (train_few_step, ["debug", "--start", ""], "expected control weights to tune, got an empty start"),
        (train_psi_dit, ["debug", "--presets", "a", "b", "c"], "expected presets among ['light', 'plain', 'stock']"),
    ],
)
def test_bad_options_end_with_status_2_and_one_sentence(script_module, options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", *options])
    with pytest.raises(SystemExit) as end:
        script_module.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--base", "nowhere.safetensors"], "expected a weight file at nowhere.safetensors, found none"),
        (["--crop-sizes", "512"], "512"),
        (["--captions", "sa"], "caption"),
        (["--val-size", "512"], "expected crop_sizes and val_size of at most 256 pixels for this base with random"),
        (["--batch-size", "3", "--accumulation", "2"], "accumulation"),
    ],
)
def test_bad_files_end_with_status_2_and_one_sentence(parts, script, tmp_path, options, message):
    status, text = script.run("train_psi_dit", parts.options(tmp_path / "run", *options))
    assert status == 2, text
    lines = [line for line in text.splitlines() if "Warning" not in line and not line.startswith(" ")]
    assert len(lines) == 1 and message in lines[0], text


def test_grid_strength_finds_detail_that_keeps_to_places_of_a_patch():
    noise = torch.randn(4, 3, 130, 130, generator=torch.Generator().manual_seed(0))
    assert grid_strength(noise) < 0.05
    places = torch.ones(8, 8)
    places[2:4, 2:4] = 3
    assert grid_strength(noise * places.repeat(17, 17)[:130, :130]) > 0.1
    pattern = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).repeat(17, 17)[:130, :130]
    assert grid_strength(noise + pattern) > 0.3


def test_what_is_packed_says_nothing_of_where_it_was_made():
    settings = {"parts": {"base": "/somewhere/base.safetensors", "kind": "a/b"}, "data": ["/photos"], "steps": 3}
    expected = {"parts": {"base": "base.safetensors", "kind": "a/b"}, "data": ["photos"], "steps": 3}
    assert pack_embedded.without_folders(settings) == expected
    for file in (EMBEDDED.autoencoder, EMBEDDED.base, EMBEDDED.control):
        metadata = {key: json.loads(value) for key, value in read_metadata(file).items()}
        assert pack_embedded.without_folders(metadata) == metadata
