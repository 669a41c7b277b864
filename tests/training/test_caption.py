"""Captioning data sets: gone on with, shared out, failures listed and tried again, what a model is shown."""

import io
import json
import os
import re
import sys
import tarfile
import time
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from caption_stand_ins import GREYS, Fake, fill, run, texts

from eam_core.captioning.caption import Caption
from eam_core.captioning.captioner import SubjectCaptioner
from eam_core.captioning.endpoint import EndpointError
from eam_core.captioning.messages import CaptionError
from train import caption_data, run_folder
from train.caption_data import read_reduced
from train.caption_lists import listed_keys
from train.data.samples import Blob, Photo
from train.run_folder import drop_leftovers, write_text


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos")


def test_both_kinds_are_written_with_their_structure_and_in_batches(photos, tmp_path):
    model, out = Fake(), tmp_path / "out"
    assert run(model, photos, out, batch_size=3) == (7, 0, 0)
    expected = {f"photos/{n}.{mode}.txt": f"A house {n} in mode {mode}.\n" for n in GREYS for mode in ("sa", "da")}
    assert texts(out) == expected
    assert sorted(model.batches, reverse=True) == [3, 3, 3, 3, 1, 1]
    note = json.loads((out / "photos" / "2.sa.json").read_text())
    assert note["focused"] and note["focal_areas"] == [{"name": "house", "box": [0.1, 0.0, 0.5, 1.0]}]
    assert note["caption"] + "\n" == expected["photos/2.sa.txt"] and (note["model"], note["prompt"]) == ("fake", "1")
    assert not list(out.rglob("*.part"))


def test_a_second_run_asks_only_what_is_missing_or_empty(photos, tmp_path):
    out = tmp_path / "out"
    run(Fake(), photos, out, modes=("sa",))
    (out / "photos" / "3.sa.txt").unlink()
    (out / "photos" / "5.sa.txt").write_text("")
    (out / "photos" / "1.sa.txt").write_text("my own words")
    model = Fake(words="A barn")
    assert run(model, photos, out, modes=("sa", "da")) == (7, 0, 0)
    assert {name for name, mode in model.asked if mode == "sa"} == {"3", "5"}
    assert len([1 for _, mode in model.asked if mode == "da"]) == 7
    assert texts(out)["photos/1.sa.txt"] == "my own words" and texts(out)["photos/3.sa.txt"].startswith("A barn 3")
    again = Fake()
    assert run(again, photos, out) == (7, 7, 0) and not again.asked


def test_failures_and_bad_pictures_are_listed_and_tried_again(photos, tmp_path):
    (photos / "bad.png").write_bytes((photos / "0.png").read_bytes()[:60])
    out = tmp_path / "out"
    assert run(Fake("2", "4"), photos, out, batch_size=4, modes=("da",)) == (8, 0, 3)
    # Pictures come in the order in which they were read.
    lines = sorted((out / "failed.rank0.txt").read_text().splitlines())
    assert [line.split("\t")[0] for line in lines] == ["photos/2", "photos/4", "photos/bad"]
    assert lines[0] == "photos/2\tda: expected an answer, got none\\nat all" and "expected a whole picture" in lines[2]
    second = Fake("4")
    assert run(second, photos, out, modes=("da",)) == (8, 5, 2)
    assert {name for name, _ in second.asked} == {"2", "4"}
    assert len((out / "failed.rank0.txt").read_text().splitlines()) == 2
    (photos / "bad.png").unlink()
    assert run(Fake(), photos, out, modes=("da",)) == (7, 6, 0) and not (out / "failed.rank0.txt").exists()


class Broken(Fake):
    """Fails as such for some batches, as a model does that runs out of memory."""

    def __init__(self, *failing: int, error: type[CaptionError] = CaptionError):
        super().__init__()
        self.failing_calls, self.error, self.calls = failing, error, 0

    def generate(self, conversations, config, on_token=None):
        self.calls += 1
        if self.calls - 1 in self.failing_calls:
            raise self.error("expected 9 GB of free memory, but it ran out")
        return super().generate(conversations, config)


@pytest.mark.parametrize("error", [CaptionError, EndpointError])
def test_a_batch_too_large_for_the_model_is_listed_and_a_model_of_no_use_ends_the_run(photos, tmp_path, error):
    assert run(Broken(2, 3, 5, error=error), photos, tmp_path / "a", modes=("da",)) == (7, 0, 3)
    model = Broken(0, error=error)
    with pytest.raises(CaptionError, match="ran out"):
        run(model, photos, tmp_path / "b", modes=("da",))
    assert model.calls == 1
    with pytest.raises(CaptionError, match="ran out"):
        run(Broken(1, 2, 3, error=error), photos, tmp_path / "c", modes=("da",))
    listed = (tmp_path / "c" / "failed.rank0.txt").read_text()
    assert listed.count("ran out") == 2 and "photos/0.da.txt" in texts(tmp_path / "c")


def test_a_failure_that_is_ready_together_with_what_ends_the_run_is_listed(photos, tmp_path, monkeypatch):
    def all_ready_the_error_first(futures, return_when):
        done, left = wait(futures)
        return sorted(done, key=lambda future: future.exception() is None), left

    monkeypatch.setattr(caption_data, "wait", all_ready_the_error_first)
    with pytest.raises(CaptionError, match="ran out"):
        run(Broken(1, 2, 3), photos, tmp_path / "out", modes=("da",))
    assert listed_keys(tmp_path / "out") == {"photos/1", "photos/2"}


def test_requests_that_fail_in_a_row_end_the_run_and_do_not_keep_other_pictures_from_it(photos, tmp_path):
    """Several workers fail together when a server is away for a moment, so each has its misses."""
    broken, out = Fake(*"12345"), tmp_path / "out"
    with pytest.raises(CaptionError, match=r"expected some answer to 3 questions in a row, got none, .*got none"):
        run(broken, photos, out, modes=("da",))
    assert {name for name, _ in broken.asked} == {"0", "1", "2", "3"}
    assert listed_keys(out) == {"photos/1", "photos/2"}
    again = Fake(*"123")
    assert run(again, photos, out, modes=("da",)) == (7, 1, 3)
    assert [name for name, _ in again.asked[::2]][:2] == ["3", "4"] and listed_keys(out) == {
        f"photos/{n}" for n in "123"
    }
    assert run(Fake(*"01234"), photos, tmp_path / "two", modes=("da",), workers=2) == (7, 0, 5)
    assert run(Fake(*"01"), photos, tmp_path / "both") == (7, 0, 2)


def test_answers_that_are_of_no_use_do_not_end_the_run(photos, tmp_path):
    model = Fake(words="I'm sorry, but I cannot help with house")
    assert run(model, photos, tmp_path / "out", modes=("da",)) == (7, 0, 7)


def test_names_and_answers_that_are_no_text_are_dealt_with(photos, tmp_path, monkeypatch):
    try:
        (photos / os.fsdecode(b"\xff.png")).write_bytes((photos / "3.png").read_bytes())
        (photos / os.fsdecode(b"\xfe.png")).write_bytes(b"no picture")
    except OSError:
        pytest.skip("file names are text here")
    out = tmp_path / "out"
    assert run(Fake(), photos, out, modes=("da",)) == (9, 0, 1)
    assert (out / "photos" / os.fsdecode(b"\xff.da.txt")).read_text() == "A house 3 in mode da.\n"
    assert (out / "failed.rank0.txt").read_text().startswith("photos/\\udcfe\t")
    ask = SubjectCaptioner.caption_many

    def halves(captioner, pictures, config, **others):
        answers = ask(captioner, pictures, config, **others)
        return [Caption("half \ud800") if "house 4" in answer.caption else answer for answer in answers]

    monkeypatch.setattr(SubjectCaptioner, "caption_many", halves)
    (photos / os.fsdecode(b"\xfe.png")).unlink()
    assert run(Fake(), photos, tmp_path / "other", modes=("da",)) == (8, 0, 1)
    listed = (tmp_path / "other" / "failed.rank0.txt").read_text()
    assert listed.startswith("photos/4\tda: expected a caption of whole characters")
    assert not list((tmp_path / "other").rglob("*.part"))


def test_two_runs_may_write_one_file_at_once_and_what_killed_ones_left_goes(tmp_path, monkeypatch):
    path, replace = tmp_path / "a" / "list.txt", os.replace

    def meanwhile(source, target):
        monkeypatch.setattr(run_folder.os, "replace", replace)
        write_text(path, "of the other")
        replace(source, target)

    monkeypatch.setattr(run_folder.os, "replace", meanwhile)
    write_text(path, "of the one")
    assert path.read_text() == "of the one" and os.listdir(path.parent) == ["list.txt"]
    left = [path.with_name(f".{name}.part") for name in ("0123456789abcdef", "fedcba9876543210", "of another program")]
    for each, age in zip(left, (7200, 60, 7200)):
        each.touch()
        os.utime(each, (time.time() - age,) * 2)
    drop_leftovers(tmp_path)
    assert [each.exists() for each in left] == [False, True, True]


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_what_lies_under_full_transparency_is_not_shown(tmp_path, mode):
    picture = Image.new("RGBA", (64, 48), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 32, 48))
    if mode == "P":
        picture = Image.new("P", (64, 48), 1)
        picture.putpalette([0, 0, 255, 255, 0, 0])
        picture.paste(0, (0, 0, 32, 48))
        picture.info["transparency"] = 1
    picture.save(tmp_path / "a.png")
    got = read_reduced(Photo("a", Blob(str(tmp_path / "a.png")))) * 255
    assert (got[:, :, :32] == torch.tensor([0.0, 0.0, 255.0])[:, None, None]).all()
    assert (got[:, :, 32:] - 128).abs().max() < 1


def test_large_pictures_are_reduced_and_turned_upright(tmp_path):
    picture = Image.new("RGB", (3000, 1500), (200, 100, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "large.jpg", exif=exif)
    got = read_reduced(Photo("large", Blob(str(tmp_path / "large.jpg"))))
    assert got.shape == (3, 1024, 512) and got.dtype == torch.float32
    assert (got.mean((1, 2)) - torch.tensor([200.0, 100.0, 0.0]) / 255).abs().max() < 0.02


@pytest.mark.parametrize("key", ["../outside", "/etc/x", "a/../../b", "x" * 250])
def test_keys_of_tars_cannot_lead_out_of_the_folder(tmp_path, key):
    data = io.BytesIO()
    Image.new("RGB", (48, 40), (30, 30, 30)).save(data, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in (f"{key}.png", "good.png"):
            member = tarfile.TarInfo(name)
            member.size = len(data.getvalue())
            archive.addfile(member, io.BytesIO(data.getvalue()))
    out = tmp_path / "deep" / "out"
    assert run(Fake(), tmp_path / "a.tar", out, modes=("sa",)) == (2, 0, 1)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["a.tar", *(f"deep/out/{name}" for name in ("failed.rank0.txt", "good.sa.json", "good.sa.txt"))]
    assert "expected a name" in (out / "failed.rank0.txt").read_text()


def test_a_caption_of_another_picture_of_that_name_is_not_taken_for_this_ones(photos, tmp_path):
    other = tmp_path / "elsewhere" / "photos"
    other.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(other / "3.png")
    (other / "9.png").write_bytes((photos / "1.png").read_bytes())
    run(Fake(), photos, tmp_path / "out")
    before = texts(tmp_path / "out")
    assert run(Fake(), other, tmp_path / "out") == (2, 0, 1)
    listed = (tmp_path / "out" / "failed.rank0.txt").read_text()
    expected = r"photos/3\t.*3\.sa\.txt: expected the caption of .*elsewhere.*; name all sources in one.*\n"
    assert re.fullmatch(expected, listed)
    found = texts(tmp_path / "out")
    assert {name: found.get(name) for name in before} == before and "photos/9.sa.txt" in found


def test_two_processes_share_the_pictures_without_overlap(photos, tmp_path):
    first, second, out = Fake("3"), Fake("1", "2"), tmp_path / "out"
    assert run(first, photos, out, (0, 2), modes=("sa",))[0] + run(second, photos, out, (1, 2), modes=("sa",))[0] == 7
    seen = [{name for name, _ in model.asked} for model in (first, second)]
    assert seen[0] | seen[1] == set(GREYS) and not seen[0] & seen[1]
    assert [path.name for path in sorted(out.glob("failed.*"))] == ["failed.rank1.txt"]  # 3 and 1 are the second's
    assert len(texts(out)["failed.rank1.txt"].splitlines()) == 1
