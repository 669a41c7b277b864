"""Training data: what a sample number stands for, exact resume, streams, and pictures that are held out or bad."""

import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import dataloader

sys.path.append(str(Path(__file__).parent))

from data_stand_ins import open_data, picture, rows, take, write_photos, write_shards

from train.data import DataError, batches, sources
from train.data.pictures import decode
from train.data.samples import crop_key, is_held_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0)


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
