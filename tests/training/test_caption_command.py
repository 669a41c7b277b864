"""The command train.caption: it asks an endpoint, may be killed, and shares pictures with other processes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from caption_stand_ins import GREYS, answer_for, call, fill, texts, words
from captioning_server import ChatServer, json_reply

from train.caption_lists import listed_keys


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos")


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
