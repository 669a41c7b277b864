"""Training reads what was captioned: beside pictures, in folders and shards, in the text cache and the ablation."""

import sys
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from caption_stand_ins import GREYS, Fake, answer_for, call, fill, name_of, run, words
from captioning_server import ChatServer

from eam_core.denoiser import Text
from eam_core.errors import EAMError
from train import ablate, cache_text
from train.ablation_plan import TABLES, arm_config
from train.caption import captions_folder
from train.data import DataConfig, DataError, TrainingData, sources
from train.data.captions import caption_path, iter_captions
from train.data.samples import split_name
from train.prepare_data import PrepareConfig, prepare
from train.run_folder import RunFolder
from train.text_cache import TextCache


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos")


def open_data(*data: Path, **settings) -> TrainingData:
    settings = {"crop_sizes": (32,), "captions": "sa", "held_out": 0, "num_workers": 0} | settings
    return TrainingData(DataConfig(data=tuple(map(str, data)), **settings), seed=3, batch_size=7)


def read(*data: Path, **settings) -> dict[str, str]:
    (batch,) = islice(open_data(*data, **settings).batches(), 1)
    for key, crop in zip(batch.keys, batch.hr):
        assert name_of(crop.float() / 255) == key.split("/")[-1].split("-crop")[0]
    return dict(zip(batch.keys, batch.captions))


def test_training_reads_the_captions_of_a_folder(photos, tmp_path):
    (photos / "4.sa.txt").write_text("beside the picture")
    (photos / "5.sa.txt").write_text("beside the picture")
    out = tmp_path / "out"
    run(Fake(), photos, out)
    (out / "photos" / "5.sa.txt").unlink()
    for mode in ("sa", "da"):
        expected = {f"photos/{n}": f"A house {n} in mode {mode}." for n in GREYS}
        if mode == "sa":
            expected["photos/5"] = "beside the picture"
            found = read(photos, caption_dir=str(out))
            assert found == expected
            config = DataConfig(data=(str(photos),), captions="sa", caption_dir=str(out))
            assert dict(iter_captions(config)) == expected
        else:
            assert read(photos, captions="da", caption_dir=str(out)) == expected
    (out / "photos" / "6.da.txt").unlink()
    wanted = (
        r"photos/6: expected a caption in .*out/photos/6\.da\.txt, .*, as for 1 of 7 pictures; write it with python"
    )
    with pytest.raises(DataError, match=wanted):
        open_data(photos, captions="da", caption_dir=str(out))
    with pytest.raises(DataError, match="--caption-dir: expected a folder, found none at"):
        open_data(photos, caption_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="with a caption_dir, got"):
        DataConfig(captions="none", caption_dir=str(out))


def shards_of(photos: Path, folder: Path) -> Path:
    """Two shards with the pictures, as prepare_data would name them."""
    folder.mkdir()
    for index, names in enumerate((list(GREYS)[:4], list(GREYS)[4:])):
        with tarfile.open(folder / f"{index}.tar", "w") as archive:
            for name in names:
                archive.add(photos / f"{name}.png", f"photos/{name}-crop00.png")
                note = tarfile.TarInfo(f"photos/{name}-crop00.sa.json")
                archive.addfile(note)
                (photos / "x.txt").write_text(f"sidecar of {name}")
                archive.add(photos / "x.txt", f"photos/{name}-crop00.sa.txt")
    return folder


@pytest.mark.parametrize("streamed", [False, True])
def test_training_reads_the_captions_of_shards_at_random_and_streamed(photos, tmp_path, monkeypatch, streamed):
    shards, out = shards_of(photos, tmp_path / "shards"), tmp_path / "out"
    if streamed:
        monkeypatch.setattr(sources, "INDEXED_BYTES", 0)
    assert set(read(shards).values()) <= {f"sidecar of {n}" for n in GREYS}  # notes beside part nothing
    run(Fake(), shards, out)
    crops = {f"photos/{n}-crop00": f"A house {n} in mode sa." for n in GREYS}
    found = read(shards, caption_dir=str(out))
    assert found.items() <= crops.items() and len(found) >= 4
    whole = tmp_path / "whole"
    run(Fake(words="A whole house"), photos, whole)
    found = read(shards, caption_dir=str(whole))
    assert found and all(text == f"A whole house {key[7]} in mode sa." for key, text in found.items())


def test_shards_of_crops_can_be_made_of_captioned_pictures(tmp_path):
    """Captions beside pictures go into shards; those in a folder of their own are found by the crops' names."""
    folder = tmp_path / "noise"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    (tmp_path / "out" / "noise").mkdir(parents=True)
    (tmp_path / "out" / "noise" / "a.sa.txt").write_text("of the picture")
    settings = PrepareConfig(sources=(str(folder),), crop_size=32, crops_per_image=3)
    prepare(settings, tmp_path / "shards", num_workers=1)
    config = DataConfig(data=(str(tmp_path / "shards"),), captions="sa", caption_dir=str(tmp_path / "out"))
    found = dict(iter_captions(config))
    assert len(found) > 1 and found == {f"noise/a-crop0{i}": "of the picture" for i in range(len(found))}


def test_captions_written_into_the_folder_of_pictures_lie_beside_them(photos, tmp_path, monkeypatch):
    (photos / "sub").mkdir()
    Image.new("RGB", (48, 40), (10, 10, 10)).save(photos / "sub" / "0.png")
    with ChatServer(answer_for) as server:
        assert call(monkeypatch, *words(server, photos, photos)) == 0
        assert (photos / "3.da.txt").read_text() == "A house 3.\n" and (photos / "sub" / "0.da.txt").exists()
        assert set(read(photos, captions="da").values()) <= {f"A house {n}." for n in GREYS}
        assert not (photos / "photos").exists()
        before = len(server.asked)
        assert call(monkeypatch, *words(server, photos, photos)) == 0 and len(server.asked) == before
    with pytest.raises(DataError, match="expected a folder of its own for captions"):
        captions_folder(photos, [str(photos), "elsewhere"])
    with pytest.raises(DataError, match="expected a folder of its own for captions"):
        captions_folder(photos, [f"DIV2K={photos}"])
    assert captions_folder(tmp_path / "out", [str(photos)]) == tmp_path / "out"


def test_streamed_shards_with_one_name_twice_are_refused(photos, tmp_path, monkeypatch, capsys):
    shards = shards_of(photos, tmp_path / "shards")
    (shards / "2.tar").write_bytes((shards / "1.tar").read_bytes())
    with ChatServer(answer_for) as server:
        monkeypatch.setattr(sources, "INDEXED_BYTES", 0)
        assert call(monkeypatch, *words(server, shards, tmp_path / "out")) == 2
    assert "expected one picture of each name in shards" in capsys.readouterr().err


def test_names_of_what_is_written_beside_captions():
    assert split_name("a/b.sa.json") == ("a/b", "sa.json") and split_name("a/b.json") == ("a/b", "json")
    assert caption_path("out", "a/b", "sa.txt") == Path("out/a/b.sa.txt")
    assert caption_path("out", "a..b/c", "sa.txt") == Path("out/a..b/c.sa.txt")


def test_the_text_cache_encodes_what_was_captioned(photos, tmp_path, monkeypatch):
    (photos / "bad.png").write_bytes(b"no picture")
    out, encoded = tmp_path / "out", []
    run(Fake(), photos, out)

    class Encoder:
        def encode_batches(self, texts, size):
            encoded.extend(texts)
            return iter(([Text(torch.zeros(1, 5, 8), torch.zeros(1, 4)) for _ in texts],))

    monkeypatch.setattr(cache_text, "open_encoder", lambda *_: Encoder())
    monkeypatch.setattr(cache_text, "fingerprint", lambda _: "none")
    options = ["--captions", "sa", "--caption-dir", out, "--text-encoders", "none", "--cache", tmp_path / "cache"]
    monkeypatch.setattr(sys, "argv", ["cache_text", "--data", str(photos), *map(str, options)])
    cache_text.main()
    assert encoded == ["", *(f"A house {n} in mode sa." for n in GREYS)]
    assert "A house 3 in mode sa." in TextCache(tmp_path / "cache")


def test_every_arm_of_the_ablation_of_prompts_reads_them(photos, tmp_path):
    out = tmp_path / "out"
    run(Fake(), photos, out)
    words = ["5", "--size", "debug", "--data", str(photos), "--text-cache", "cache", "--caption-dir", str(out)]
    config = ablate.base_config(ablate.build_parser().parse_args(words))
    arms = [arm_config(config, arm, seed=0, mask_share=0.5) for arm in TABLES["5"].arms]
    for arm in arms:
        captions = dict(iter_captions(arm.data))
        assert captions == {f"photos/{n}": f"A house {n} in mode {arm.data.captions}." for n in GREYS}
    assert [arm.data.captions for arm in arms] == ["da", "da", "sa", "sa"]


def test_a_run_begun_before_there_was_a_caption_dir_goes_on_without_one(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_config({"data": {"captions": "sa"}, "seed": 3})
    folder.save(1, {"x": torch.zeros(1)}, keep_last=1)
    with pytest.raises(EAMError, match="caption_dir 'data' instead of None"):
        folder.write_config({"data": {"captions": "sa", "caption_dir": "data"}, "seed": 3})
    folder.write_config({"data": {"captions": "sa", "caption_dir": ""}, "seed": 3})
