"""Captioning data sets: gone on with, killed, shared out, failures listed and tried again, and read by training."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from captioning_server import ChatServer, json_reply

from eam_core.captioning.caption import Caption
from eam_core.captioning.captioner import SubjectCaptioner
from eam_core.captioning.endpoint import EndpointError
from eam_core.captioning.messages import CaptionError
from eam_core.denoiser import Text
from eam_core.errors import EAMError
from train import ablate, cache_text, caption, run_folder
from train.ablation_plan import TABLES, arm_config
from train.caption import caption_data, captions_folder
from train.caption_data import AskConfig, read_reduced
from train.caption_lists import listed_keys
from train.data import DataConfig, DataError, TrainingData, sources
from train.data.captions import caption_path, iter_captions
from train.data.samples import Blob, Photo, split_name
from train.data.sources import all_photos
from train.options import run_script
from train.prepare_data import PrepareConfig, prepare
from train.run_folder import RunFolder, drop_leftovers, write_text
from train.text_cache import TextCache

GREYS = {f"{number}": 20 * number + 10 for number in range(7)}


def fill(folder: Path) -> Path:
    """Write grey pictures that a stand-in for a model can tell apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, grey in GREYS.items():
        Image.new("RGB", (48, 40), (grey, grey, grey)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos")


def name_of(picture: torch.Tensor) -> str:
    grey = round(picture.mean().item() * 255)
    return next(name for name, value in GREYS.items() if abs(value - grey) < 5)


class Fake:
    """A stand-in for a model: says which picture it was shown, and fails for some."""

    identity = "fake"

    def __init__(self, *failing: str, words: str = "A house"):
        self.failing, self.words, self.asked, self.batches = set(failing), words, [], []
        self.lock = threading.Lock()

    def prepare(self, on_token=None):
        pass

    def generate(self, conversations, config, on_token=None):
        answers = []
        for chat in conversations:
            mode = "sa" if len(chat) > 2 else "da"
            name = name_of(chat[-1].parts[0])
            text = f"{self.words} {name} in mode {mode}."
            if name in self.failing:
                answers.append(CaptionError("expected an answer, got none\nat all"))
            elif mode == "sa":
                area = {"name": "house", "box": [100, 0, 500, 1000]}
                answers.append(json.dumps({"focused": True, "focal_areas": [area], "caption": text}))
            else:
                answers.append(text)
            with self.lock:
                self.asked.append((name, mode))
        self.batches.append(len(conversations))
        return answers


def run(model, source: Path, out: Path, share=(0, 1), **settings):
    config = AskConfig(folder=out, **settings)
    return caption_data(model, all_photos([str(source)]), config, rank=share[0], world_size=share[1])


def texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.txt")}


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
    lines = (out / "failed.rank0.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["photos/2", "photos/4", "photos/bad"]
    assert lines[0] == "photos/2\tda: expected an answer, got none at all" and "expected a whole picture" in lines[2]
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


# The command.


def answer_for(asked) -> str:
    """Answer as `Fake` does, from the picture as it came."""
    import base64

    data = asked.fields["messages"][-1]["content"][0]["image_url"]["url"].split(",")[1]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(data)))).astype(np.float32) / 255
    return f"A house {name_of(torch.from_numpy(pixels))}."


def words(server: ChatServer, photos: Path, out: Path, *more: str) -> list[str]:
    return ["--images", str(photos), "--out", str(out), "--mode", "da", "--endpoint", server.url, *more]


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["caption", *arguments])
    try:
        run_script(caption.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_asks_an_endpoint_and_ends_with_1_if_some_failed(photos, tmp_path, monkeypatch, capsys):
    def script(asked):
        name = answer_for(asked)
        return json_reply({"error": "too much"}, 400) if bad and name == "A house 6." else name

    with ChatServer(script) as server:
        bad = True
        arguments = words(server, photos, tmp_path / "out", "--seed", "4", "--extra", "Name trees.", "--model", "mine")
        assert call(monkeypatch, *arguments) == 1
        assert "7 pictures: 6 captioned, 0 had captions, 1 failed, see" in capsys.readouterr().out
        assert {asked.fields["model"] for asked in server.asked} == {"mine"} and server.asked[0].fields["seed"] == 4
        assert server.asked[0].fields["messages"][0]["content"].endswith("Also: Name trees.")
        assert "HTTP status 400 (too much)" in (tmp_path / "out" / "failed.rank0.txt").read_text()
        bad, before = False, len(server.asked)
        (tmp_path / "out" / "failed.rank3.txt").write_text("of an earlier run with more processes")
        assert call(monkeypatch, *arguments) == 0 and len(server.asked) == before + 1
        assert "7 pictures: 1 captioned, 6 had captions, 0 failed\n" in capsys.readouterr().out
    assert texts(tmp_path / "out") == {f"photos/{n}.da.txt": f"A house {n}.\n" for n in GREYS}


def test_one_refused_request_does_not_end_a_run(photos, tmp_path, monkeypatch, capsys):
    refused = {
        "1": (403, "content policy"),
        "3": (404, "image not found"),
        "5": (400, "model runner: image file not found"),
    }

    def script(asked):
        text = answer_for(asked)
        status, why = refused.get(text[-2], (200, ""))
        return json_reply({"error": {"message": why}}, status) if why else text

    with ChatServer(script) as server:
        assert call(monkeypatch, *words(server, photos, tmp_path / "out", "--concurrency", "1")) == 1
        assert "7 pictures: 4 captioned, 0 had captions, 3 failed" in capsys.readouterr().out
        assert listed_keys(tmp_path / "out") == {f"photos/{name}" for name in refused}
    with ChatServer(lambda asked: json_reply({}, 403)) as server:
        assert call(monkeypatch, *words(server, photos, tmp_path / "none", "--concurrency", "1")) == 2
        assert len(server.asked) == 1 and "EAM_API_KEY" in capsys.readouterr().err


def test_the_model_may_be_an_address_and_the_temperature_is_passed_on(photos, tmp_path, monkeypatch):
    with ChatServer(answer_for) as server:
        arguments = ["--images", photos, "--out", tmp_path / "out", "--mode", "da", "--model", server.url]
        assert call(monkeypatch, *map(str, arguments), "--temperature", "0.75") == 0
        assert {(asked.fields["model"], asked.fields["temperature"]) for asked in server.asked} == {
            ("first-model", 0.75)
        }
    assert len(texts(tmp_path / "out")) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "http://127.0.0.1:1"], "expected the name of a model of http://127.0.0.1"),
        (["--temperature", "3"], "expected a temperature in [0, 2]"),
        (["--endpoint", "http://192.0.2.1"], "pictures would leave this machine"),
        (["--endpoint", "http://127.0.0.1:1"], "got no connection"),
        (["--max-tokens", "3"], "max_tokens of at least 16"),
        (["--images", "/nowhere"], "expected a folder of pictures"),
        (["--concurrency", "0"], "expected --concurrency above 0"),
        (["--endpoint", ""], "expected --model FOLDER or --endpoint URL"),
        (["--endpoint", "", "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(photos, tmp_path, monkeypatch, capsys, change, message):
    with ChatServer() as server:
        assert call(monkeypatch, *words(server, photos, tmp_path / "out"), *change) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_killed_at_any_moment_it_leaves_whole_files_and_goes_on(photos, tmp_path, script):
    out, ready = tmp_path / "out", threading.Event()

    def slow(asked):
        if asked.number >= 3:
            ready.set()
            time.sleep(0.3)
        return answer_for(asked)

    with ChatServer(slow) as server:
        arguments = words(server, photos, out, "--concurrency", "2")
        process = script.start("caption", arguments)
        assert ready.wait(60), process.kill()
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        written = texts(out)
        assert 1 <= len(written) < 7 and all(re.fullmatch(r"A house \d\.\n", text) for text in written.values())
        assert all(json.loads(path.read_text())["caption"] for path in out.rglob("*.da.json"))
        before = len(server.asked)
        status, text = script.run("caption", arguments)
        assert status == 0 and f"{7 - len(written)} captioned, {len(written)} had captions" in text
        assert len(server.asked) - before == 7 - len(written)
    assert texts(out) == {f"photos/{n}.da.txt": f"A house {n}.\n" for n in GREYS}


def test_processes_of_torchrun_wait_for_each_other_when_some_pictures_fail(photos, tmp_path, script):
    """The launcher ends all processes as soon as one ends with a failure."""

    def uneven(asked):
        text = answer_for(asked)
        if int(text[-2]) % 2:
            time.sleep(0.5)
        return json_reply({"error": "no"}, 400) if text == "A house 0." else text

    with ChatServer(uneven) as server:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train.caption"]
        arguments = words(server, photos, tmp_path / "out", "--concurrency", "1")
        command = [sys.executable, "-P", "-m", *launcher, *arguments]
        done = subprocess.run(command, env=script.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "7 pictures: 6 captioned, 0 had captions, 1 failed" in done.stdout, done.stderr
    expected = {f"photos/{n}.da.txt": f"A house {n}.\n" for n in list(GREYS)[1:]}
    found = texts(tmp_path / "out")
    assert "photos/0\t" in found.pop("failed.rank0.txt") and found == expected
    # The picture that fails is asked about twice, with another seed.
    assert sorted(answer_for(asked) for asked in server.asked) == sorted(
        ["A house 0.", *(f"A house {n}." for n in GREYS)]
    )


# Training.


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
