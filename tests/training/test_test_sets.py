"""Test sets as a user gets them: from packages laid out in a cache, from a folder, from published folder layouts."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eam_core.degradation import PRESETS, degrade
from eam_core.images import load_image
from train import prepare_photos, prepare_test_set
from train.evaluation import test_sets
from train.evaluation.test_sets import SETS, pick_crops
from train.prepare_photos import Source

INPUTS = ("lr-plain", "lr-light", "lr-stock")
CROP = 64


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(folder: Path, **sizes: tuple[int, int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, size) in enumerate(sizes.items()):
        noise(*size, seed).save(folder / f"{name}.png")
    return folder


def prepare(name: str, out: Path, *options: object) -> int:
    return prepare_test_set.main([name, "--out", str(out), *map(str, options)])


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def small_crops(monkeypatch):
    """Cut small crops, to be quick."""
    for module in (prepare_photos, test_sets):
        monkeypatch.setattr(module, "CROP", CROP)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return a cache that holds the only package of `photos`: one photo that gives two crops."""
    source = Source(client="deb", package="some-photos", patterns=("*.png",), licence="CC0, nobody")
    monkeypatch.setattr(test_sets, "PHOTO_SOURCES", (source,))
    folder = tmp_path / "cache" / "deb-some-photos"
    write(folder, photo=(2 * CROP + 20, CROP + 9))
    (folder / "FETCHED").write_text("some-photos_1.0_all.deb")
    return tmp_path / "cache"


def test_photos_are_crops_of_a_package_with_three_inputs_each(cache, tmp_path):
    assert prepare("photos", tmp_path / "set", "--cache", cache) == 0
    description = json.loads((tmp_path / "set" / "test_set.json").read_text())
    assert (description["name"], description["scale"], description["seed"]) == ("photos", 4, 0)
    stems = [picture["stem"] for picture in description["pictures"]]
    assert len(stems) == 2
    for folder in ("hr", *INPUTS):
        assert sorted(path.name for path in (tmp_path / "set" / folder).iterdir()) == [f"{stem}.png" for stem in stems]
    photo = Image.open(cache / "deb-some-photos" / "photo.png")
    for picture in description["pictures"]:
        origin = picture["origin"]
        assert (origin["package"], picture["licence"]) == ("some-photos_1.0_all.deb", "CC0, nobody")
        region = photo.crop((origin["x"], origin["y"], origin["x"] + CROP, origin["y"] + CROP))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "set" / "hr" / f"{picture['stem']}.png")), region)
        assert Image.open(tmp_path / "set" / "lr-stock" / f"{picture['stem']}.png").size == (CROP // 4, CROP // 4)


def test_crops_of_one_photo_share_no_part_of_it():
    crops = [
        {"scale": f"1/{scale}", "x": x, "y": y}
        for scale, width, height in ((1, 4, 3), (2, 2, 1))
        for x in range(0, width * CROP, CROP)
        for y in range(0, height * CROP, CROP)
        if (scale, x, y) not in ((1, 0, 0), (1, 0, CROP), (1, CROP, 0), (1, CROP, CROP))
    ]
    for seed in range(20):
        chosen = pick_crops(crops, random.Random(seed))
        # Eight at native size; of the two at half size only the one whose native crops were not detailed.
        assert sorted(crop["scale"] for crop in chosen) == ["1/1"] * 8 + ["1/2"]
        covered = np.zeros((3 * CROP, 4 * CROP), dtype=int)
        for crop in chosen:
            scale = int(crop["scale"][2:])
            x, y, size = crop["x"] * scale, crop["y"] * scale, CROP * scale
            covered[y : y + size, x : x + size] += 1
        assert covered.max() == 1
    many = [{"scale": "1/1", "x": CROP * index, "y": 0} for index in range(30)]
    assert len(pick_crops(many, random.Random(0))) == test_sets.CROPS_PER_PHOTO


def test_picture_i_is_degraded_with_seed_plus_i(tmp_path):
    source = write(tmp_path / "mine", a=(72, 64), b=(72, 64))
    assert prepare("folder", tmp_path / "set", "--source", source, "--seed", 7) == 0
    for index, stem in enumerate("ab"):
        hr = load_image(tmp_path / "set" / "hr" / f"{stem}.png").rgb
        for preset in ("plain", "light", "stock"):
            lr = load_image(tmp_path / "set" / f"lr-{preset}" / f"{stem}.png").rgb
            assert torch.equal(lr, degrade(hr, 4, PRESETS[preset], [7 + index]))


def test_a_folder_s_pictures_are_cut_to_multiples_of_the_scale(tmp_path):
    source = write(tmp_path / "mine", odd=(67, 50))
    assert prepare("folder", tmp_path / "set", "--source", source, "--scale", 3) == 0
    assert Image.open(tmp_path / "set" / "hr" / "odd.png").size == (66, 48)
    assert Image.open(tmp_path / "set" / "lr-light" / "odd.png").size == (22, 16)
    hr = np.asarray(Image.open(tmp_path / "set" / "hr" / "odd.png"))
    assert np.array_equal(hr, np.asarray(Image.open(source / "odd.png"))[1:49, :66])


def test_a_set_that_was_cut_off_is_completed_and_a_finished_one_is_kept(cache, tmp_path, monkeypatch, capsys):
    out = tmp_path / "set"
    assert prepare("photos", out, "--cache", cache) == 0
    whole, save, saved = files(out), prepare_test_set.save_image, []

    def save_five(picture, path):
        if len(saved) == 5:
            raise KeyboardInterrupt
        saved.append(path)
        save(picture, path)

    monkeypatch.setattr(prepare_test_set, "save_image", save_five)
    with pytest.raises(KeyboardInterrupt):
        prepare("photos", tmp_path / "again", "--cache", cache)
    monkeypatch.setattr(prepare_test_set, "save_image", lambda picture, path: (saved.append(path), save(picture, path)))
    assert prepare("photos", tmp_path / "again", "--cache", cache) == 0
    assert files(tmp_path / "again") == whole
    assert len(saved) == len(set(saved)) == 8

    monkeypatch.setattr(test_sets, "PHOTO_SOURCES", ())  # a finished set needs no package
    capsys.readouterr()
    assert prepare("photos", out, "--cache", cache) == 0
    assert "2 pictures in hr, lr-plain, lr-light, lr-stock" in capsys.readouterr().out


def test_a_folder_with_something_else_is_refused(tmp_path, capsys):
    source = write(tmp_path / "mine", a=(64, 64))
    assert prepare("folder", tmp_path / "set", "--source", source) == 0
    before = files(tmp_path / "set")
    assert prepare("folder", tmp_path / "set", "--source", source, "--seed", 1) == 2
    assert "choose another folder" in capsys.readouterr().err
    write(source, b=(64, 64))
    assert prepare("folder", tmp_path / "set", "--source", source) == 2
    write(tmp_path / "foreign" / "hr", a=(64, 64))
    assert prepare("folder", tmp_path / "foreign", "--source", source) == 2
    assert "found others' pictures" in capsys.readouterr().err
    assert files(tmp_path / "set") == before


def test_div2k_is_brought_to_its_short_edge(tmp_path, monkeypatch):
    monkeypatch.setattr(test_sets, "DIV2K_SHORT_EDGE", 64)
    monkeypatch.setitem(SETS, "div2k-val", dataclasses.replace(SETS["div2k-val"], count=2))
    source = write(tmp_path / "DIV2K_valid_HR", **{"0801": (204, 128), "0802": (40, 60)})
    assert prepare("div2k-val", tmp_path / "set", "--source", source) == 0
    assert Image.open(tmp_path / "set" / "hr" / "0801.png").size == (100, 64)
    assert Image.open(tmp_path / "set" / "hr" / "0802.png").size == (64, 96)
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"hr", "lr-stock", "test_set.json"}


LAYOUTS = {
    "published RealSR": ("Canon/Test/4/one_HR", "Canon/Test/4/one_LR4", "Nikon/Test/4/two_HR", "Nikon/Test/4/two_LR4"),
    "published DRealSR": tuple(f"Test_x4/test_{kind}" for kind in ("HR/one_x4", "LR/one_x1", "HR/two_x4", "LR/two_x1")),
    "crops, own names": tuple(f"test_{kind}" for kind in ("HR/one_HR", "LR/one_LR4", "HR/two_HR", "LR/two_LR4")),
    "crops, same names": tuple(f"test_{kind}" for kind in ("HR/one", "LR/one", "HR/two", "LR/two")),
    "one folder": ("one_HR", "one_LR4", "two_HR", "two_LR4"),
}


@pytest.fixture
def pair_of_two(monkeypatch):
    monkeypatch.setitem(SETS, "realsr", dataclasses.replace(SETS["realsr"], count=2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_are_found_in_published_layouts(layout, tmp_path, pair_of_two):
    source = tmp_path / "source"
    for number, path in enumerate(LAYOUTS[layout]):
        write((source / path).parent)
        noise(*((64, 80) if number % 2 == 0 else (16, 20)), number).save(source / f"{path}.png")
    # Other scales and the training part lie beside it.
    noise(64, 80).save(write(source / "Canon/Test/2") / "three_HR.png")
    noise(64, 80).save(write(source / "Canon/Train/4") / "four_HR.png")
    assert prepare("realsr", tmp_path / "set", "--source", source) == 0
    for folder, offset in (("hr", 0), ("lr", 1)):
        for index, stem in enumerate(("one", "two")):
            written = Image.open(tmp_path / "set" / folder / f"{stem}.png")
            found = Image.open(source / f"{LAYOUTS[layout][2 * index + offset]}.png")
            assert np.array_equal(np.asarray(written), np.asarray(found))


def test_pairs_that_do_not_fit_are_named(tmp_path, pair_of_two, capsys):
    source = write(tmp_path / "v1", one_HR=(64, 64), one_LR4=(64, 64), two_HR=(64, 64), two_LR4=(16, 16))
    assert prepare("realsr", tmp_path / "set", "--source", source) == 2
    assert "one: expected an HR picture of 4 times the LR picture's 64 x 64, got 64 x 64" in capsys.readouterr().err
    (source / "two_LR4.png").unlink()
    assert prepare("realsr", tmp_path / "set", "--source", source) == 2
    assert "only one of 'two'" in capsys.readouterr().err
    assert prepare("realsr", tmp_path / "set", "--source", write(tmp_path / "empty")) == 2
    assert "expected test_HR/* with test_LR/*, or Test/4/*_HR.png with *_LR4.png" in capsys.readouterr().err


def test_inputs_alone_are_counted(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "RealPhoto60", a=(20, 30), b=(40, 20))
    assert prepare("realphoto60", tmp_path / "set", "--source", source) == 2
    assert "expected 60 pictures" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    monkeypatch.setitem(SETS, "realphoto60", dataclasses.replace(SETS["realphoto60"], count=2))
    assert prepare("realphoto60", tmp_path / "set", "--source", source) == 0
    assert sorted(files(tmp_path / "set")) == ["lr/a.png", "lr/b.png", "test_set.json"]


@pytest.mark.parametrize("name", [name for name in SETS if name != "photos"])
def test_a_missing_source_is_explained(name, tmp_path, capsys):
    assert prepare(name, tmp_path / "set") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {name}: expected --source DIR") and message.count("\n") == 1


def test_two_pictures_of_one_name_and_an_empty_folder_are_refused(tmp_path, capsys):
    source = write(tmp_path / "mine", a=(64, 64))
    noise(32, 32).save(source / "a.jpg")
    assert prepare("folder", tmp_path / "set", "--source", source) == 2
    assert "got two 'a'" in capsys.readouterr().err
    assert prepare("folder", tmp_path / "set", "--source", write(tmp_path / "empty")) == 2
    assert "got 0" in capsys.readouterr().err


def test_a_picture_too_small_to_be_reduced_is_refused(tmp_path, capsys):
    assert prepare("folder", tmp_path / "set", "--source", write(tmp_path / "mine", a=(64, 60))) == 2
    assert "a, reduced 4 times: expected edges of 16" in capsys.readouterr().err
