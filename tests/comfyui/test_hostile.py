"""Workflows of strangers on a real server: what they name is refused in one sentence, or stays where it may be."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from caption_graph import prompt_for
from comfy_host import ComfyServer, ExecutionError
from folders import Job
from PIL import Image

MEGABYTE = "a" * 2**20


def make_hostile(folder: Path) -> list[str]:
    """Fill a folder with two good pictures and what none should be; return the good ones."""
    good = ["1.png", "5 \x1b[2J\n\u202egnp.png"]
    for name in good:
        Image.new("RGB", (20, 20), "red").save(folder / name)
    os.mkfifo(folder / "2.png")
    (folder / "3.png").symlink_to("/etc/passwd")
    (folder / "4.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    (folder / "6.png").touch()
    os.truncate(folder / "6.png", 2**40)
    (folder / "7.png").mkdir()
    return good


def test_a_folder_of_hostile_files_is_gone_through(server: ComfyServer) -> None:
    job = Job(server)
    good = make_hostile(job.folder)
    try:
        start = time.monotonic()
        assert job.run() == "Finished: 2 of 5, 3 failed; eam_folder.jsonl in the output folder says why."
        assert time.monotonic() - start < 60
    finally:  # other tests copy the input folder
        (job.folder / "2.png").unlink()
        (job.folder / "6.png").unlink()
    assert job.results() == sorted(good)
    failed = {line["name"]: line["error"] for line in job.lines("failed")}
    assert set(failed) == {"3.png", "4.png", "6.png"}
    assert all(message.isprintable() for message in failed.values())
    assert b"\x1b[2J" not in server.log_path.read_bytes()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pattern": "[" * 100_000}, "pattern: expected at most 1000 characters, got 100000"),
        ({"folder": "a\u202egnp"}, "folder: expected one line of text"),
        ({"folder": "\ud800"}, "folder: expected one line of text"),
        ({"folder": "n" * 300}, "folder: expected names of at most 255 bytes"),
        ({"folder": "a/" * 3000}, "folder: expected a path of at most 2000 bytes"),
        ({"output_folder": "a/" * 3000}, "output_folder: expected a path of at most 2000 bytes"),
        ({"output_folder": "/dev/shm"}, "output_folder: expected a folder inside ComfyUI's output folder"),
        ({"output_folder": "COM¹"}, "output_folder: expected a name that Windows can hold too"),
        ({"folder": "/proc/self/cwd"}, "folder: expected a folder inside"),
    ],
)
def test_folders_and_patterns_that_are_refused(server: ComfyServer, inputs: dict[str, Any], message: str) -> None:
    job = Job(server)
    start = time.monotonic()
    answer = job.error(**inputs)
    assert answer.startswith(message) and answer.isprintable() and len(answer) < 2200
    assert time.monotonic() - start < 30
    assert not job.output.exists()


def test_a_saver_that_core_does_not_check_names_no_file_elsewhere(server: ComfyServer) -> None:
    """Core runs a prompt without the outputs that it finds wrong, but they are still written in it."""
    job = Job(server)
    Image.new("RGB", (20, 20)).save(job.folder / "1.png")
    job.save("wrong", format="../../../escaped")
    assert "expected a format of as input, png, jpg, webp, got '../../../escaped'" in job.error()
    assert not list(server.work_dir.rglob("*escaped*"))


@pytest.mark.parametrize(
    "source",
    [
        "../../../etc",
        "/etc",
        "LLM/../../../etc",
        "LLM\\..\\..\\..\\etc",
        "C:\\Windows",
        "\\\\host\\share",
        "file:///etc/passwd",
        "a\0b",
        "n" * 5000,
        "\ud800",
        "http://169.254.169.254/latest",
        "http://127.0.0.1@evil.example/",
        "http://127.0.0.1.evil.example/",
        "http://[::ffff:1.2.3.4]/",
        "http://127.0.0.1:1/v1?key=a",
        "ftp://127.0.0.1/",
        MEGABYTE,
    ],
)
def test_captioners_elsewhere_are_refused(server: ComfyServer, beach: str, source: str) -> None:
    with pytest.raises(ExecutionError) as error:
        server.run(prompt_for(beach, loader={"source": source, "name": ""}))
    message = str(error.value).removeprefix("EAM_LoadCaptioner: ").removeprefix("EAM_SubjectCaption: ")
    assert message.startswith(("expected", "endpoint: expected")) and message.isprintable() and len(message) < 2200


def test_long_texts_are_one_sentence_or_pass(server: ComfyServer, beach: str) -> None:
    """A caption of a megabyte is the user's own and stays whole; an instruction of one is refused."""
    loader = {"source": "http://127.0.0.1:9/v1", "name": "m"}
    with pytest.raises(ExecutionError, match="an extra instruction of at most 20000 characters, got 1048576"):
        server.run(prompt_for(beach, loader=loader, extra_instruction=MEGABYTE))
    start = time.monotonic()
    outputs = server.run(prompt_for(beach, caption=MEGABYTE))
    assert outputs["2"]["text"] == [MEGABYTE] and time.monotonic() - start < 30


def test_other_sites_cannot_ask_the_route(server: ComfyServer) -> None:
    """A page of another origin reaches this machine's ports, so core compares the two."""
    body = {"names": ["a.png"]}
    address = f"{server.url}/eam/kept_pictures"
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        answer = requests.post(address, json=body, headers={"Origin": origin}, timeout=30)
        assert answer.status_code == 403, origin
        assert "kept" not in answer.text
    answer = requests.post(address, json=body, headers={"Sec-Fetch-Site": "cross-site"}, timeout=30)
    assert answer.status_code == 403
    assert requests.post(address, json=body, timeout=30).json() == {"kept": [False]}
    assert requests.get(address, timeout=30).status_code in (404, 405)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"names": ' + b'["x"]' * 2 + b"}",
        b'{"names": [' + b'"x",' * 20_000 + b'"x"]}',
        b'{"names": [1e999]}',
        b"\xff\xfe",
        b"",
    ],
)
def test_the_route_takes_names_alone(server: ComfyServer, body: bytes) -> None:
    answer = requests.post(f"{server.url}/eam/kept_pictures", data=body, timeout=30)
    assert answer.status_code == 400 and "Traceback" not in answer.text


def test_the_route_tells_nothing_of_other_folders(server: ComfyServer) -> None:
    temp = server.work_dir / "temp"
    temp.mkdir(exist_ok=True)
    (temp / "mine.png").touch()
    (temp / "folder").mkdir(exist_ok=True)
    names = ["mine.png", "../input/one.png", "..", ".", "", "folder", "a\0b", "\ud800", "n" * 5000, "temp\\mine.png"]
    names += ["/etc/passwd", "C:x", "./mine.png", "mine.png/", "\u202e"]
    answer = requests.post(f"{server.url}/eam/kept_pictures", json={"names": names}, timeout=30)
    assert answer.json() == {"kept": [True] + [False] * (len(names) - 1)}
