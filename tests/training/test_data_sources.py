"""Where training data comes from: folders, tars and layouts, names, captions, and what is refused."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from data_stand_ins import open_data, picture, take, write_photos, write_shards

from train.data import DataConfig, DataError, sources
from train.data.captions import iter_captions
from train.data.samples import split_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0)


def test_small_tars_are_read_at_random_like_folders(shards):
    data = open_data(shards / "{000..003}.tar", crop_sizes=(16,), batch_size=28)
    assert data.num_photos == 28
    assert {key.split("/")[0] for key in take(data, 1)[0].keys} == set("0123")
    assert open_data(shards / "00[12].tar", crop_sizes=(16,)).num_photos == 14


def test_large_shards_and_folders_do_not_mix(shards, folder, streamed):
    with pytest.raises(DataError, match=r"got both; make shards of the folders with python -m train\.prepare_data"):
        open_data(shards, folder)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_damaged_shard_is_named(tmp_path, shards, monkeypatch, is_streamed):
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0 if is_streamed else 2**30)
    (tmp_path / "cut.tar").write_bytes((shards / "000.tar").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut\.tar: expected a whole \.tar file"):
        take(open_data(tmp_path / "cut.tar"), 1)


@pytest.mark.parametrize(
    ("layout", "hr", "lr"),
    [
        ("DIV2K", "DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X4/0001x4.png"),
        ("Flickr2K", "Flickr2K_HR/000001.png", "Flickr2K_LR_bicubic/X2/000001x2.png"),
        ("LSDIR", "HR/train/0001000/0000001.png", "X4/train/0001000/0000001x4.png"),
        ("LSDIR", "0001000/0000001.png", "X4/train/0001000/0000001x4.png"),
        ("OST", "OutdoorSceneTrain_v2/sky/1.png", "OutdoorSeg/sky/1.png"),
        ("FFHQ", "images1024x1024/00000/00001.png", "thumbnails128x128/00000/00001.png"),
    ],
)
def test_layouts_find_hr_pictures_alone(tmp_path, layout, hr, lr):
    root = tmp_path / layout
    for name in (hr, lr):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(1).save(root / name)
    for place in (root, tmp_path):
        batch = take(open_data(f"{layout}={place}", batch_size=1), 1)[0]
        assert batch.keys[0].startswith(f"{layout}/") and batch.keys[0].endswith(hr.removesuffix(".png"))
    assert open_data(f"{layout.lower()}={root}").num_photos == 1


def test_ffhq_takes_the_first_pictures_by_number(tmp_path, monkeypatch):
    monkeypatch.setitem(sources.LAYOUTS, "FFHQ", sources.LAYOUTS["FFHQ"].__class__(patterns=("*.png",), first=2))
    for name in ("10", "9", "00008"):
        picture(1).save(tmp_path / f"{name}.png")
    assert set(take(open_data(f"FFHQ={tmp_path}", batch_size=2), 1)[0].keys) == {"FFHQ/00008", "FFHQ/9"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{tmp}/none", "none: expected a folder of pictures or .tar files, found none at .*; check the path"),
        ("{tmp}/empty", "empty: expected pictures or .tar shards, found none"),
        ("{tmp}/{{0..2}}.tar", r"found none at .*0\.tar"),
        ("DIV2K={tmp}/empty", r"expected pictures in .*DIV2K_train_HR/\*\.png, found none"),
        ("DIV3K={tmp}/empty", "known layouts are DIV2K, Flickr2K, LSDIR, OST, FFHQ"),
        ("OST={tmp}/none", "expected a folder after '='"),
    ],
)
def test_missing_sources_are_named(tmp_path, data, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_data(data.format(tmp=tmp_path))


def test_no_source_at_all_is_said():
    with pytest.raises(DataError, match="expected a source of pictures, got none; give --data"):
        open_data()


def test_captions_come_from_their_own_file_then_the_common_one_then_json(tmp_path):
    for name, files in {
        "a": {"sa.txt": "sa of a", "txt": "any of a"},
        "b": {"txt": "any of b", "json": json.dumps({"sa": "no"})},
        "c.v2": {"json": json.dumps({"sa": "json of c"})},
    }.items():
        picture(1).save(tmp_path / f"{name}.png")
        for kind, text in files.items():
            (tmp_path / f"{name}.{kind}").write_text(f"{text}\n" if kind != "json" else text)
    batch = take(open_data(tmp_path, captions="sa", batch_size=3), 1)[0]
    expected = {"a": "sa of a", "b": "any of b", "c.v2": "json of c"}
    assert {key.split("/")[1]: text for key, text in zip(batch.keys, batch.captions)} == expected
    config = DataConfig(data=(str(tmp_path),), captions="sa")
    assert [text for _, text in iter_captions(config)] == list(expected.values())
    with pytest.raises(DataError, match=r"c\.v2: expected a caption .* as for 1 of 3 pictures; .*--captions none"):
        open_data(tmp_path, captions="da")


def test_equal_names_in_two_folders_keep_apart(tmp_path):
    for place in ("one/photos/1.png", "two/photos/1.png", "two/photos/1.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        picture(1).save(tmp_path / place)
    data = open_data(tmp_path / "one/photos", tmp_path / "two/photos", batch_size=3)
    assert set(take(data, 1)[0].keys) == {"photos/1", "photos/1~2", "photos/1~3"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.sa.txt", ("a/b", "sa.txt")),
        ("1.5x.PNG", ("1.5x", "png")),
        ("b.jpeg", ("b", "jpeg")),
        ("._b.jpg", None),
        ("__skipped__", None),
        ("notes.md", None),
    ],
)
def test_names_split_into_key_and_kind(name, expected):
    assert split_name(name) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_sizes": (500,)},
        {"crop_sizes": ()},
        {"held_out": 1},
        {"captions": "long"},
        {"crop_tries": 0},
        {"num_workers": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*, got .*; "):
        DataConfig(data=("x",), **wrong)
