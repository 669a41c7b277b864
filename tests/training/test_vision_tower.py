"""Tuning the vision tower: what it learns from, that only it learns, and that what is written loads everywhere."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from comfy_install import comfy_root
from comfy_launch import define_missing_operators

from eam_core.degradation import PRESETS, degrade
from eam_core.errors import CheckpointError
from eam_core.vision import VisionTower, to_pixels
from eam_core.weight_files import read_weights
from train.data import Batch, TrainingData
from train.train_vision_tower import (
    UNREAD,
    VisionTowerObjective,
    VisionTowerTask,
    consissr,
    debug,
    save_tower,
    train_vision_tower,
)

define_missing_operators()  # transformers is imported by the tests only


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for number in range(9):
        coarse = torch.randint(0, 256, (8, 10, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((120, 96), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def config(photos: Path, tmp_path: Path):
    data = dataclasses.replace(debug().data, data=(str(photos),))
    return dataclasses.replace(debug(), data=data, run_dir=str(tmp_path / "run"))


@pytest.fixture
def objective(config) -> VisionTowerObjective:
    return VisionTowerTask(config).module


def batch(count: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    hr = torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return Batch(hr, torch.arange(5, 5 + count), [""] * count, [""] * count)


@torch.no_grad()
def test_loss_is_the_distance_of_the_tokens_of_lr_and_hr(objective):
    given = batch()
    hr = given.hr.float() / 255
    lr = degrade(hr, 4, PRESETS["stock"], given.seeds)
    expected = []
    for clean, degraded in zip(hr, lr):
        tokens = [objective.teacher(to_pixels(x[None], 32)).last_hidden_state for x in (degraded, clean)]
        expected.append((tokens[0] - tokens[1]).square().mean())
    loss = objective(given, 0)["loss"]
    assert torch.allclose(loss, torch.stack(expected), rtol=1e-4)
    assert (loss > 0).all() and loss[0] != loss[1]


def test_a_samples_loss_depends_on_its_own_seed_only(objective):
    three = batch(3)
    alone = Batch(three.hr[2:], three.seeds[2:], [""], [""])
    other = Batch(three.hr[2:], three.seeds[2:] + 1, [""], [""])
    loss = objective(three, 0)["loss"][2]
    assert torch.allclose(loss, objective(alone, 7)["loss"][0], rtol=1e-4)
    assert not torch.allclose(loss, objective(other, 0)["loss"][0], rtol=1e-2)


def test_student_learns_and_the_teacher_never(objective):
    teacher = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    start = {name: value.clone() for name, value in objective.student.state_dict().items()}
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(batch(), 0)["loss"].mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in trained), "DDP wants a gradient for each"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(torch.equal(value, teacher[name]) for name, value in objective.teacher.state_dict().items())
    changed = {name for name, value in objective.student.state_dict().items() if not torch.equal(value, start[name])}
    assert changed == {name for name in start if not name.startswith(UNREAD)}


def test_run_writes_a_tower_that_the_library_loads(config):
    train_vision_tower(config)
    folder = Path(config.run_dir) / "tower"
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "training.json",
    }
    assert json.loads((folder / "training.json").read_text())["step"] == 4
    summary = json.loads((Path(config.run_dir) / "summary.json").read_text())
    assert 0 < summary["validation"]["mse"] != summary["validation"]["mse_untuned"] > 0
    held_out = TrainingData(config.data, seed=0, batch_size=1).held_out_batch(config.val_count, 64)
    hr = held_out.hr.float() / 255
    clean = VisionTowerTask(config).module.teacher(to_pixels(hr, 32)).last_hidden_state
    seen = VisionTower(folder).encode(degrade(hr, 4, PRESETS["stock"], held_out.seeds))
    assert (seen - clean).square().mean().item() == pytest.approx(summary["validation"]["mse"], rel=0.01)
    assert VisionTowerTask(dataclasses.replace(config, tower=str(folder))).module.image_size == 32


def test_what_is_written_is_what_was_given_in_half_precision(objective, tmp_path):
    state = objective.student.state_dict()
    save_tower(objective.student, state, tmp_path / "tower")
    found = read_weights(tmp_path / "tower" / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(value, state[name].half()) for name, value in found.items())
    assert [file.name for file in tmp_path.iterdir()] == ["tower"]
    from transformers import CLIPImageProcessor

    image = batch(1).hr
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "tower")
    pixels = processor(Image.fromarray(image[0].permute(1, 2, 0).numpy()), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    assert (pixels - to_pixels(image.float() / 255, 32)).abs().mean() < 0.02


def test_names_are_those_that_comfyui_knows_a_vit_h_by():
    """Its loader tells towers by names and layer counts; no weights are needed for that."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    file = comfy_root() / "comfy" / "clip_vision_config_h.json"
    sizes = {**json.loads(file.read_text()), "hidden_act": "gelu"}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "projection_dim")
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**{name: sizes[name] for name in names}, patch_size=14))
    state = {name: tuple(value.shape) for name, value in tower.state_dict().items()}
    assert "vision_model.encoder.layers.30.layer_norm1.weight" in state
    assert state["vision_model.embeddings.position_embedding.weight"] == (257, 1280)
    assert state["visual_projection.weight"] == (1024, 1280)


def test_recipe_is_the_papers():
    config = consissr()
    assert (config.loop.steps, config.loop.lr, config.pairs.presets) == (100_000, 1e-4, ("stock",))


def test_tower_without_its_projection_is_refused(config, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"a CLIP vision tower in .*bare, but it lacks visual_projection"):
        VisionTowerTask(dataclasses.replace(config, tower=str(tmp_path / "bare")))
