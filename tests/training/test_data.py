"""Training data: what a sample number stands for, exact resume, sources, captions, and what bad files come to."""

import io
import json
import os
import signal
import tarfile
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import dataloader

from train.data import Batch, DataConfig, DataError, TrainingData, batches, sources
from train.data.captions import iter_captions
from train.data.crops import training_crop
from train.data.pictures import decode
from train.data.samples import crop_key, is_held_out, split_name


def picture(number: int, width: int = 48, height: int = 40) -> Image.Image:
    dice = np.random.default_rng(number)
    return Image.fromarray(dice.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(13):
        (folder / f"{number:02d}.jpg").write_bytes(encoded(picture(number)))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Five shards of 7 pictures each, with captions, one of them of a picture too small to use."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(5):
        files = {}
        for number in range(7):
            size = (20, 20) if (shard, number) == (1, 3) else (48, 40)
            key = f"{shard}/{number}"
            files |= {f"{key}.jpg": encoded(picture(10 * shard + number, *size)), f"{key}.sa.txt": key.encode()}
        write_tar(folder / f"{shard:03d}.tar", files | {"__notes__": b"of no interest"})
    return folder


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0)


def open_data(*data: Path | str, batch_size: int = 4, accumulation: int = 1, rank=0, world_size=1, **config):
    settings = {"crop_sizes": (32,), "held_out": 0, "num_workers": 0} | config
    return TrainingData(
        DataConfig(data=tuple(map(str, data)), **settings),
        seed=5,
        batch_size=batch_size,
        accumulation=accumulation,
        rank=rank,
        world_size=world_size,
    )


def rows(batches: list[Batch]) -> list[tuple[int, str, bytes]]:
    return [
        (int(seed), key, crop.numpy().tobytes())
        for batch in batches
        for seed, key, crop in zip(batch.seeds, batch.keys, batch.hr)
    ]


def take(data: TrainingData, count: int, start_step: int = 0) -> list[Batch]:
    stream = data.batches(start_step)
    found = list(islice(stream, count))
    stream.close()  # type: ignore[attr-defined]
    return found


def test_a_batch_holds_crops_with_their_seeds_and_names(folder):
    batch = take(open_data(folder), 1)[0]
    assert batch.hr.shape == (4, 3, 32, 32) and batch.hr.dtype == torch.uint8
    assert batch.seeds.dtype == torch.int64 and len(set(batch.seeds.tolist())) == 4
    assert all(key.startswith(f"{folder.name}/") for key in batch.keys) and batch.captions == [""] * 4


def test_an_epoch_shows_every_photo_once_and_the_next_in_another_order(folder):
    keys = [key for batch in take(open_data(folder, batch_size=13), 2) for key in batch.keys]
    assert len(set(keys[:13])) == len(set(keys[13:])) == 13 and keys[:13] != keys[13:]


def test_resuming_equals_skipping(folder):
    data = open_data(folder, accumulation=2, crop_sizes=(16, 32), batch_size=8)
    assert rows(take(data, 10)[6:]) == rows(take(data, 4, start_step=3))


def test_workers_and_ranks_do_not_change_what_a_sample_is(folder):
    settings = {"batch_size": 16, "crop_sizes": (16, 32), "accumulation": 2}
    alone = take(open_data(folder, **settings), 8)
    ranks = [take(open_data(folder, **settings, rank=rank, world_size=2, num_workers=rank * 2), 8) for rank in (0, 1)]
    for whole, *parts in zip(alone, *ranks):
        assert rows([whole]) == rows(parts)
    assert {batch.hr.shape[-1] for batch in alone} == {16, 32}
    assert {batch.hr.shape[0] * batch.hr.shape[-1] ** 2 for batch in alone} == {8 * 16**2}


def test_a_batch_that_cannot_be_shared_out_names_the_next_that_can(folder):
    with pytest.raises(ValueError, match=r"got 6; 8 is the next"):
        open_data(folder, batch_size=6, accumulation=2, world_size=2)
    with pytest.raises(ValueError, match=r"got 2; 4 is the next"):
        open_data(folder, batch_size=2, crop_sizes=(16, 32))


def test_the_global_random_state_is_left_alone(folder):
    before = torch.get_rng_state()
    take(open_data(folder, num_workers=1), 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_resume_at_any_step(shards, streamed, num_workers):
    data = open_data(shards, num_workers=num_workers, batch_size=6, accumulation=2, crop_sizes=(16, 32)[:1])
    assert data.num_photos is None
    whole = take(data, 34)  # more than two epochs
    for step in (1, 7, 14):
        assert rows(whole[2 * step : 2 * step + 4]) == rows(take(data, 4, start_step=step))


def test_resuming_a_stream_reads_only_what_is_left(shards, streamed, monkeypatch):
    monkeypatch.setattr("train.data.shards.SHUFFLE", 1)
    opened: list[str] = []
    real = open
    monkeypatch.setattr(
        "builtins.open", lambda file, *more, **kw: (opened.append(str(file)), real(file, *more, **kw))[1]
    )
    decoded: list[str] = []
    monkeypatch.setattr(batches, "decode", lambda data, name: (decoded.append(name), decode(data, name))[1])
    take(open_data(shards, batch_size=7, crop_sizes=(16,)), 1, start_step=4)
    read = [name for name in opened if name.endswith(".tar")]
    assert len(decoded) == 7 and len(read) == 1  # headers are read by tarfile, with its own open


def test_stream_epochs_show_every_picture_once_over_all_ranks_and_workers(shards, streamed):
    every = {f"{shard}/{number}" for shard in range(5) for number in range(7)}
    one = [key for batch in take(open_data(shards, batch_size=7, crop_sizes=(16,)), 10) for key in batch.keys]
    assert set(one[:35]) == set(one[35:]) == every and one[:35] != one[35:]
    assert one[:35] != sorted(one[:35])
    ranks = [
        open_data(shards, batch_size=2, crop_sizes=(16,), rank=rank, world_size=2, num_workers=2) for rank in (0, 1)
    ]
    shown = [
        {key.split("/")[0] for batch in take(data, 14)[i::2] for key in batch.keys} for data in ranks for i in (0, 1)
    ]
    assert sorted(map(len, shown)) == [1, 1, 1, 2] and set.union(*shown) == set("01234")


def test_streamed_crops_keep_their_captions(shards, streamed):
    batch = take(open_data(shards, captions="sa", crop_sizes=(16,)), 1)[0]
    assert batch.captions == batch.keys


def test_fewer_shards_than_readers_is_refused_with_the_number_needed(shards, streamed):
    with pytest.raises(DataError, match=r"at least 6 shards for 2 processes with 3 data workers each, got 5; lower"):
        open_data(shards, world_size=2, num_workers=3)


def test_a_small_or_broken_picture_in_a_stream_is_replaced_by_the_next_and_resume_still_holds(shards, streamed):
    data = open_data(shards, batch_size=5)
    with pytest.warns(UserWarning, match="smaller than the largest crop of 32"):
        whole = take(data, 14)
    assert "1/3" not in {key for batch in whole for key in batch.keys}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(7):
            assert rows(whole[step : step + 1]) == rows(take(data, 1, start_step=step))


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


def test_a_stream_says_which_picture_lacks_a_caption_even_from_a_worker(shards, streamed):
    with pytest.raises(DataError, match=r"^\d/\d: expected a caption in \d/\d\.da\.txt") as caught:
        take(open_data(shards, captions="da", crop_sizes=(16,), num_workers=1), 1)
    assert "Traceback" not in str(caught.value)


def test_small_and_unreadable_pictures_are_left_out_with_one_warning(folder, tmp_path):
    for number in range(3):
        picture(number).save(tmp_path / f"good{number}.png")
    picture(4, 100, 20).save(tmp_path / "small.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning) as caught:
        data = open_data(tmp_path)
    assert data.num_photos == 3 and len(caught) == 1
    assert "2 of 5 pictures are left out" in str(caught[0].message)
    assert "broken (unreadable)" in str(caught[0].message) and "small (100 x 20)" in str(caught[0].message)
    with pytest.raises(DataError, match="at least 64 x 64 pixels, the largest crop, got none among 13"):
        open_data(folder, crop_sizes=(32, 64), batch_size=4)


def test_a_picture_cut_short_is_replaced_by_that_of_the_next_sample(tmp_path, folder):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = take(open_data(folder, batch_size=13), 1)[0]
    at = 4
    name = whole.keys[at].split("/")[1]
    (tmp_path / f"{name}.jpg").write_bytes((folder / f"{name}.jpg").read_bytes()[:1500])  # its header is whole
    with pytest.warns(UserWarning, match=f"replaced by another one: .*{name}: expected a whole picture"):
        batch = take(open_data(tmp_path, batch_size=13), 1)[0]
    assert batch.seeds.equal(whole.seeds)
    names = [key.split("/")[1] for key in batch.keys]
    assert names[at] == names[at + 1] and [n for i, n in enumerate(names) if i != at] == [
        key.split("/")[1] for i, key in enumerate(whole.keys) if i != at
    ]


def test_a_dead_worker_is_one_sentence(folder, monkeypatch):
    # How long the loader waits for a batch before it looks after its workers.
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))

    def die(data: bytes, name: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(batches, "decode", die)
    with pytest.raises(DataError, match=r"a data worker died .*: lower --num-workers"):
        take(open_data(folder, num_workers=1), 1)


def test_held_out_pictures_are_never_trained_on_and_the_same_everywhere(folder, shards, monkeypatch):
    data = open_data(folder, held_out=3, num_workers=0)
    held = data.held_out_batch(50, 32)
    trained = {key for batch in take(data, 10) for key in batch.keys}
    assert held.keys and not trained & set(held.keys) and len(trained) + len(held.keys) == 13
    assert rows([held]) == rows([open_data(folder, held_out=3, rank=1, world_size=2).held_out_batch(50, 32)])
    assert len(data.held_out_batch(1, 32).keys) == 1
    assert data.held_out_batch(2, 640).hr.shape == (0, 3, 640, 640)
    indexed = open_data(shards, held_out=3, crop_sizes=(16,)).held_out_batch(50, 32)
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0)
    stream = open_data(shards, held_out=3, crop_sizes=(16,))
    assert sorted(rows([indexed])) == sorted(rows([stream.held_out_batch(50, 32)])) != []
    assert not {key for batch in take(stream, 20) for key in batch.keys} & set(indexed.keys)


def test_crops_of_one_picture_fall_on_one_side():
    for number in range(50):
        key = f"DIV2K/{number}"
        assert {is_held_out(crop_key(key, i), 4) for i in range(5)} == {is_held_out(key, 4)}


def test_all_held_out_is_refused(tmp_path):
    key = next(n for n in range(100) if is_held_out(f"{tmp_path.name}/{n}", 2))
    picture(1).save(tmp_path / f"{key}.png")
    with pytest.raises(DataError, match="all are held out; set --held-out 0"):
        open_data(tmp_path, held_out=2)


def test_equal_names_in_two_folders_keep_apart(tmp_path):
    for place in ("one/photos/1.png", "two/photos/1.png", "two/photos/1.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        picture(1).save(tmp_path / place)
    data = open_data(tmp_path / "one/photos", tmp_path / "two/photos", batch_size=3)
    assert set(take(data, 1)[0].keys) == {"photos/1", "photos/1~2", "photos/1~3"}


def modes() -> Iterator[tuple[str, bytes]]:
    grey = Image.fromarray(np.full((32, 48), 100, dtype=np.uint8))
    yield "grey", encoded(grey, "PNG")
    yield "16 bits", encoded(Image.fromarray(np.full((32, 48), 100 * 257, dtype=np.uint16)), "PNG")
    yield "palette", encoded(grey.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), "PNG")
    transparent = grey.convert("RGBA")
    transparent.putalpha(0)
    yield "alpha", encoded(transparent, "PNG")


@pytest.mark.parametrize(("name", "data"), list(modes()))
def test_every_colour_mode_becomes_8_bit_rgb(name, data):
    assert (decode(data, name) == np.full((32, 48, 3), 100)).all()


def test_exif_turns_the_picture_upright():
    image = picture(1, 48, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    upright = np.asarray(image).transpose(1, 0, 2)[:, ::-1]
    assert (decode(encoded(image, "PNG", exif=exif), "turned") == upright).all()


def test_crops_prefer_detail_and_stay_upright_for_captions():
    pixels = np.zeros((64, 640, 3), dtype=np.uint8)
    pixels[:, :160] = np.random.default_rng(0).integers(0, 256, (64, 160, 3))
    few, many = (
        sum(float(training_crop(pixels, 64, i, tries=n, turns=1).float().mean()) for i in range(60)) for n in (1, 4)
    )
    assert many > 1.5 * few
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    assert all(training_crop(ramp, 32, i, tries=1, turns=1)[0, 0, 0] < 64 // 2 + 2 for i in range(20))
    noise = pixels[:, :64]
    kinds = [{training_crop(noise, 64, i, tries=1, turns=n).numpy().tobytes() for i in range(60)} for n in (1, 4)]
    assert list(map(len, kinds)) == [2, 8]  # flipped or not, times the quarter turns


def test_a_third_of_the_crops_is_of_twice_the_size():
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[::2] = 255  # lines vanish at half size
    halved = sum(int(training_crop(pixels, 32, i, tries=1, turns=1).float().std() < 60) for i in range(300))
    assert 70 < halved < 130


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
