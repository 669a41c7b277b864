"""The trainer on the debug recipe: what it writes, what it optimises, and what must change nothing."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from eam_core.checkpoint import build_control, build_image_prompt, check_pair, mmdit_params
from eam_core.denoiser import Text
from eam_core.errors import EAMError
from eam_core.presets import EMBEDDED
from eam_core.weight_files import read_metadata, read_weights
from train import train_vision_tower
from train.control_task import ControlConfig, ControlObjective, ControlTask
from train.data import TrainingData
from train.options import parse_config
from train.recipes import RECIPES
from train.text_cache import TextCache
from train.train_psi_dit import train_control


def configured(parts, run_dir, *options: str) -> ControlConfig:
    return parse_config(RECIPES, description="", argv=parts.options(run_dir, *options))


def trained(parts, run_dir: Path, *options: str) -> dict[str, Tensor]:
    """Train in this process and return every tensor of the last checkpoint."""
    train_control(configured(parts, run_dir, *options))
    return last_checkpoint(run_dir)


def last_checkpoint(run_dir: Path) -> dict[str, Tensor]:
    return read_weights(max((run_dir / "checkpoints").glob("*.safetensors")))


def log_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differ, f"{len(differ)} of {len(one)} tensors differ, e.g. {differ[0]}"


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.fixture(scope="module")
def run_dir(parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "debug"
    train_control(configured(parts, folder))
    return folder


def test_run_folder_holds_what_the_docs_name(run_dir):
    assert {path.name for path in run_dir.iterdir()} == {
        "config.json",
        "log.jsonl",
        "tensorboard",
        "checkpoints",
        "control.safetensors",
        "summary.json",
    }


def test_config_is_complete_and_written_before_the_first_step(parts, tmp_path):
    options = ["--lr", "1e30", "--warmup", "0"]
    with pytest.raises(EAMError):
        trained(parts, tmp_path, *options)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["recipe"], config["loop"]["lr"], config["parts"]["base"]) == ("debug", 1e30, str(parts.base))


def test_exported_weights_load_and_fit_the_base(parts, run_dir):
    control = build_control(read_weights(run_dir / "control.safetensors"), "control")
    check_pair(mmdit_params(read_weights(parts.base)), control.params, "control")
    notes = json.loads(read_metadata(run_dir / "control.safetensors")["training"])
    assert (notes["kind"], notes["recipe"], notes["step"]) == ("control", "debug", 4)


def test_exported_weights_are_the_average_of_those_trained(parts, tmp_path):
    tensors = trained(parts, tmp_path, "--steps", "2", "--ema", "0")
    names = [name.removeprefix("model.") for name in tensors if name.startswith("model.")]
    assert all(torch.equal(tensors[f"model.{name}"], tensors[f"ema.{name}"]) for name in names)
    averaged = trained(parts, tmp_path / "averaged", "--steps", "2", "--ema", "0.9")
    assert not torch.equal(averaged[f"model.{names[0]}"], averaged[f"ema.{names[0]}"])
    exported = read_weights(tmp_path / "averaged" / "control.safetensors")
    assert torch.equal(exported["lr_embedder.proj.weight"], averaged["ema.model.control.lr_embedder.proj.weight"])


def test_only_the_control_is_optimised(parts, run_dir):
    tensors = last_checkpoint(run_dir)
    control = build_control(read_weights(run_dir / "control.safetensors"), "control")
    own = {f"model.control.{name}" for name, _ in control.named_parameters()}
    kinds = ("model", "ema", "exp_avg", "exp_avg_sq")
    assert tensors.keys() == {f"{kind}.{name}" for kind in kinds for name in own}
    task = ControlTask(configured(parts, "unused"))
    assert not any(p.requires_grad for p in task.module.model.base.parameters())


def test_log_and_tensorboard_hold_losses_per_band_mask_ratio_norm_and_speed(run_dir):
    entries = [entry for entry in log_of(run_dir) if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    for entry in entries:
        assert {"loss", "grad_norm", "mask_ratio", "images_per_second", "lr"} <= entry.keys()
        assert all(math.isfinite(value) for value in entry.values())
        assert any(name.startswith("loss_sigma_") for name in entry)
    assert [entry["mask_ratio"] >= 0.75 for entry in entries] == [True, True, False, False]
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert {"loss", "mask_ratio", "grad_norm", "validation/psnr_plain"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("validation/plain")] == [2, 4]


def test_summary_says_how_it_went(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["exported"], summary["processes"]) == (4, ["control.safetensors"], 1)
    assert summary["images_per_second"] > 0
    assert set(summary["validation"]) == {"psnr_plain", "psnr_light", "psnr_stock"}


def test_older_checkpoints_are_dropped(parts, tmp_path):
    trained(parts, tmp_path, "--save-every", "1", "--keep-last", "2")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"step-0000000{step}.{suffix}" for step in (3, 4) for suffix in ("json", "safetensors")
    ]


def test_accumulated_micro_batches_train_as_one_batch(parts, tmp_path):
    options = ("--batch-size", "4", "--steps", "2")
    whole = trained(parts, tmp_path / "whole", *options)
    split = trained(parts, tmp_path / "split", *options, "--accumulation", "2")
    for kind in ("model", "exp_avg"):
        part = {name: value for name, value in whole.items() if name.startswith(f"{kind}.")}
        assert_close(part, {name: split[name] for name in part}, 1e-4 if kind == "model" else 1e-5)


@pytest.mark.parametrize("family", ["psi_dit", "controlnet"])
def test_gradient_checkpointing_changes_nothing(parts, tmp_path, family):
    options = ("--family", family, "--steps", "2")
    plain = trained(parts, tmp_path / "plain", *options)
    again = trained(parts, tmp_path / "again", *options, "--gradient-checkpointing", "on")
    assert_close(plain, again, 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        ("--family", "controlnet", "--num-blocks", "1"),
        ("--lr-attention", "cross"),
        ("--lr-init", "text", "--zero-init", "off"),
        ("--loss", "picture", "--times", "uniform"),
        ("--loss", "denoised", "--tala", "u"),
        ("--mask-strategy", "random"),
        ("--local-heads", "1", "--lr-schedule", "constant"),
    ],
    ids=" ".join,
)
def test_every_choice_trains_to_a_file_that_loads(parts, tmp_path, options):
    trained(parts, tmp_path, *options)
    build_control(read_weights(tmp_path / "control.safetensors"), "control")


@pytest.fixture(scope="module")
def tower(parts, tmp_path_factory) -> Path:
    """A tiny random vision tower, tuned by the debug recipe of the first stage."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
    from comfy_launch import define_missing_operators

    define_missing_operators()
    folder = tmp_path_factory.mktemp("tower")
    data = dataclasses.replace(train_vision_tower.debug().data, data=(str(parts.photos),))
    config = dataclasses.replace(train_vision_tower.debug(), data=data, run_dir=str(folder))
    train_vision_tower.train_vision_tower(config)
    return folder / "tower"


@pytest.mark.parametrize("options", [("--tala", "sigma"), ("--tala", "none"), ("--family", "controlnet")], ids=" ".join)
def test_the_image_prompt_trains_with_and_without_tala_and_beside_any_control(parts, tower, tmp_path, options):
    tensors = trained(parts, tmp_path, "--image-encoder", str(tower), *options)
    moved = [
        n
        for n in tensors
        if n.startswith("model.model.image_prompt.") and tensors[n.replace("model", "exp_avg", 1)].any()
    ]
    assert any("to_out_ip" in name for name in moved) and any("projector" in name for name in moved)
    state = read_weights(tmp_path / "control.safetensors")
    prompt = build_image_prompt(state, "control")
    assert prompt is not None and prompt.params.image_size == 64
    again = trained(
        parts, tmp_path / "again", "--image-encoder", str(tower), *options, "--gradient-checkpointing", "on"
    )
    assert_close(tensors, again, 1e-6)


def test_sd3s_own_autoencoder_trains_a_control(parts, tower, tmp_path):
    """The class that holds SD3's autoencoder, small and random, from a diffusers folder."""
    diffusers = pytest.importorskip("diffusers")  # after `tower` has made torchvision importable
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8],
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae.save_pretrained(tmp_path / "vae")
    tensors = trained(parts, tmp_path / "run", "--autoencoder", str(tmp_path / "vae"))
    assert all(".control." in name for name in tensors)
    with pytest.raises(EAMError, match=r"expected an EAM autoencoder .*, got .*; use --loss velocity"):
        trained(parts, tmp_path / "other", "--autoencoder", str(tmp_path / "vae"), "--loss", "picture")


def test_without_a_vision_tower_there_is_no_image_prompt(run_dir):
    assert build_image_prompt(read_weights(run_dir / "control.safetensors"), "control") is None


@pytest.fixture(scope="module")
def captioned(parts, tmp_path_factory) -> tuple[list[str], Path]:
    """Options that train with text: pictures with captions, and random embeddings of these and of none."""
    root = tmp_path_factory.mktemp("captioned")
    shutil.copytree(parts.photos, root / "photos")
    cache = TextCache.create(root / "cache", "random")
    generator = torch.Generator().manual_seed(0)
    for name in ["", *(path.stem for path in parts.photos.iterdir())]:
        if name:
            (root / "photos" / f"{name}.sa.txt").write_text(f"picture {name}")
        text = Text(torch.randn(1, 5, 64, generator=generator), torch.randn(1, 64, generator=generator))
        cache.write(f"picture {name}" if name else "", text)
    options = ["--data", str(root / "photos"), "--captions", "sa", "--text-cache", str(cache.folder)]
    return options, root


def test_text_reaches_the_network_and_is_dropped_when_asked(parts, captioned, tmp_path):
    options, _ = captioned
    losses = {}
    for share in ("0", "1"):
        trained(parts, tmp_path / share, *options, "--null-text", share, "--steps", "2", "--lr", "0")
        losses[share] = log_of(tmp_path / share)[0]["loss"]
    trained(parts, tmp_path / "none", "--steps", "2", "--lr", "0")
    assert len({losses["0"], losses["1"], log_of(tmp_path / "none")[0]["loss"]}) == 3


def test_a_caption_without_embedding_is_one_sentence(parts, captioned, tmp_path):
    options, root = captioned
    photos = tmp_path / "photos"
    shutil.copytree(root / "photos", photos)
    for file in photos.glob("*.sa.txt"):
        file.write_text("something else")
    with pytest.raises(EAMError, match=r"expected the embedding of the caption 'something else' in .* found none; run"):
        trained(parts, tmp_path / "run", *options, "--data", str(photos))


def test_given_weights_are_continued(parts, run_dir, tmp_path):
    start = run_dir / "control.safetensors"
    trained(parts, tmp_path, "--start", str(start), "--lr", "0")
    assert_same(read_weights(start), read_weights(tmp_path / "control.safetensors"))


def test_without_held_out_pictures_it_trains_and_says_so(parts, tmp_path, capsys):
    trained(parts, tmp_path, "--held-out", "0")
    assert "no picture is held out for validation; see --held-out" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["validation"] == {}


def test_bfloat16_trains_to_about_the_same_losses(parts, script, tmp_path):
    for precision in ("no", "bf16"):
        status, text = script.run("train_psi_dit", parts.options(tmp_path / precision, "--precision", precision))
        assert status == 0, text
    plain, half = ([e["loss"] for e in log_of(tmp_path / p) if "loss" in e] for p in ("no", "bf16"))
    assert half == pytest.approx(plain, rel=0.03) and half != plain
    control = build_control(read_weights(tmp_path / "bf16" / "control.safetensors"), "control")
    assert next(control.parameters()).dtype == torch.float32


def test_other_seeds_give_other_weights(parts, run_dir, tmp_path):
    other = trained(parts, tmp_path, "--seed", "1")
    name = "model.model.control.lr_embedder.proj.weight"
    assert not torch.equal(other[name], last_checkpoint(run_dir)[name])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(parts, tmp_path):
    with pytest.raises(EAMError, match="expected a finite loss and gradient, got another at step"):
        trained(parts, tmp_path, "--lr", "1e30", "--warmup", "0")
    (file,) = tmp_path.glob("nonfinite-step-*.json")
    report = json.loads(file.read_text())
    (batch,) = report["batches"]
    assert len(batch["keys"]) == len(batch["loss"]) == 2
    assert report["config"]["loop"]["lr"] == 1e30


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(parts, tmp_path, monkeypatch):
    class Broken(torch.autograd.Function):
        """A loss that is fine and a gradient that is not, as an overflow in half precision makes it."""

        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    right = ControlObjective.forward

    def broken(self, batch, step):
        out = right(self, batch, step)
        return {**out, "loss": Broken.apply(out["loss"])} if step == 2 else out

    monkeypatch.setattr(ControlObjective, "forward", broken)
    with pytest.raises(EAMError, match="got another at step 2"):
        trained(parts, tmp_path, "--save-every", "2")
    assert all(value.isfinite().all() for value in last_checkpoint(tmp_path).values())
    assert json.loads(next(tmp_path.glob("nonfinite-*.json")).read_text())["batches"]


def test_images_per_second_counts_what_was_trained(parts, tmp_path):
    """A larger crop makes a smaller batch: of four images at 64 px, one at 128 px."""
    trained(parts, tmp_path, "--crop-sizes", "64", "128", "--batch-size", "4", "--steps", "6", "--log-every", "6")
    summary = json.loads((tmp_path / "summary.json").read_text())
    images = summary["images_per_second"] * summary["seconds_since_last_start"]
    sizes = [
        len(b.hr) for b in batches_of(configured(parts, tmp_path, "--crop-sizes", "64", "128", "--batch-size", "4"), 6)
    ]
    assert set(sizes) == {1, 4}
    assert images == pytest.approx(sum(sizes), rel=0.1)


def batches_of(config: ControlConfig, count: int) -> list:
    batches = TrainingData(config.data, seed=config.loop.seed, batch_size=config.loop.batch_size).batches()
    return [next(batches) for _ in range(count)]


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
