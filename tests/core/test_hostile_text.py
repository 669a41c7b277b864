"""Text of strangers: names, prompts and captions steer no terminal, break no line and cost no more than they are."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import FAST, refused, write

from eam_core.captioning.cache import CaptionCache
from eam_core.captioning.caption import Caption, FocalArea, read_answer
from eam_core.captioning.captioner import CaptionConfig
from eam_core.captioning.wording import fitted
from eam_core.cli import main
from eam_core.errors import EAMError, FolderError, ImageError, check_text, printable
from eam_core.folder_report import Report
from eam_core.restore_config import RestoreConfig

EVIL = "\x1b]0;owned\x07\x1b[2Jgnp\u202e\r\n\x9b31m"  # a title, a cleared screen, turned text, a second line


def test_what_is_shown_is_one_printable_line() -> None:
    shown = printable(f"{EVIL} \udcff Ünïcode 日本 \u00a0")
    assert "\\x1b]0;owned\\x07" in shown and "\\u202e" in shown and "\\r\\n" in shown and "\\udcff" in shown
    assert "Ünïcode 日本 \u00a0" in shown
    assert all(each.isprintable() or each == "\u00a0" for each in shown)
    shown.encode()
    assert printable("plain / text\\n") == "plain / text\\n"
    long = printable("a" * 2**20 + "; do this")
    assert len(long) < 2100 and long.endswith("; do this") and " ... " in long


@pytest.mark.parametrize("kind", [EAMError, ImageError, FolderError])
def test_every_message_for_the_user_is_one_printable_line(kind: type[EAMError]) -> None:
    message = str(kind(f"{EVIL}.png: expected a picture, found no such file; check the path"))
    assert message.isprintable() and message.endswith("check the path")


def test_names_of_files_do_not_steer_the_terminal(tiny_options: list[str], tmp_path: Path) -> None:
    """Neither in a result's line nor in an error's; bytes that are no text end nothing."""
    (tmp_path / "in").mkdir()
    name = os.fsencode(tmp_path / "in") + b"/a\x1b[31m\xe2\x80\xae\xff\n.png"
    write(tmp_path / "in" / "plain.png")
    os.rename(tmp_path / "in" / "plain.png", name)
    with open(os.fsencode(tmp_path / "in") + b"/b\x1b[2J\n.png", "wb") as file:
        file.write(b"no picture")
    command = [sys.executable, "-P", "-m", "eam_core", "upscale", tmp_path / "in", tmp_path / "out", *FAST]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*command, *tiny_options], capture_output=True, env=environment, timeout=120)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 1 and "Traceback" not in err
    assert all(line.isprintable() for line in (out + err).splitlines()) and "\x1b" not in out + err
    assert "a\\x1b[31m\\u202e\\udcff\\n.png: 56 x 40" in out
    assert "b\\x1b[2J\\n.png: expected a PNG" in err
    assert os.listdir(os.fsencode(tmp_path / "out")) == [os.path.basename(name)]


def test_arguments_do_not_steer_the_terminal(upscale: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = upscale(f"{EVIL}.png", tmp_path / "o.png")
    refused(result, "no such file", "\\x1b]0;owned")
    assert result[2].strip().isprintable()
    with pytest.raises(SystemExit, match="2"):
        main(["upscale", "a", "b", f"--{EVIL}"])
    assert capsys.readouterr().err.strip().isprintable()


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_prompts_have_a_length_and_are_text(field: str) -> None:
    RestoreConfig(**{field: "a " * 10_000})
    with pytest.raises(ValueError, match="prompt of at most 20000 characters, got 1048576; shorten it"):
        RestoreConfig(**{field: "a" * 2**20})
    with pytest.raises(ValueError, match=r"prompt to be text, got '\\udcff' in it"):
        RestoreConfig(**{field: "a cat\udcff"})
    with pytest.raises(ValueError, match="an extra instruction of at most"):
        CaptionConfig(extra="a" * 2**20)
    check_text("a prompt", "Ünïcode 日本 🐈\u200d")


def test_a_prompt_that_is_no_text_is_one_sentence(upscale: Callable, tmp_path: Path) -> None:
    refused(upscale(write(tmp_path / "a.png"), tmp_path / "b.png", "--prompt", "a cat\udcff"), "prompt to be text")


@pytest.mark.parametrize("text", [EVIL + "A cat.", "A \ud800cat.", "\u2066A cat.\u2069\u200f"])
@pytest.mark.parametrize("form", ["da", "sa", "broken off"])
def test_captions_are_text_that_files_and_terminals_hold(tmp_path: Path, text: str, form: str) -> None:
    """JSON writes any character in plain ones, so that the answer itself looks clean."""
    answer = text
    if form != "da":
        answer = json.dumps({"caption": text, "focused": True, "focal_areas": [{"name": text, "box": [0, 0, 9, 9]}]})
    if form == "broken off":
        answer = json.dumps({"caption": text})[:-2]
    caption = fitted(read_answer(answer, "sa" if form != "da" else "da"))
    assert caption.caption.isprintable() and caption.caption.endswith("cat.")
    assert all(area.name.isprintable() for area in caption.focal_areas)
    cache = CaptionCache(tmp_path)
    cache.write({"a": 1}, caption)
    assert cache.read({"a": 1}) == caption
    json.dumps(caption.as_json(), ensure_ascii=False).encode()


def test_a_caption_of_marks_alone_is_none() -> None:
    with pytest.raises(EAMError, match="expected JSON with a caption"):
        read_answer(json.dumps({"caption": "\u202e\x1b"}), "sa")


@pytest.mark.parametrize(
    "answer",
    ["{" * 2**20, '{"caption":"' * 10**5, "<think>" * 10**5, '"' * 2**20, ",]" * 10**5, "```" * 10**5, ", " * 10**6],
)
def test_answers_made_to_be_slow_are_read_quickly(answer: str) -> None:
    start = time.process_time()
    for mode in ("sa", "da"):
        try:
            fitted(read_answer(answer, mode))
        except EAMError as error:
            assert str(error).isprintable() and len(str(error)) < 500
    assert time.process_time() - start < 3


def test_captions_made_to_be_slow_are_fitted_quickly() -> None:
    start = time.process_time()
    for words in ("noisy and ", "blurry, ", "a bit ", "very ", " and blurry but with "):
        fitted(Caption(words * 10**5, True, tuple(FocalArea(f"thing {n}") for n in range(200))))
    assert time.process_time() - start < 5


def test_lines_of_the_report_stay_lines(tmp_path: Path) -> None:
    report = Report(tmp_path, EVIL)
    report.add("done", f'a{EVIL}", "state": "done', error=EVIL + "\udcff\u2028")
    lines = (tmp_path / "eam_folder.jsonl").read_text(encoding="ascii").splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["name"] == f'a{EVIL}", "state": "done'
    report.catch_up()
    assert report.done() == {f'a{EVIL}", "state": "done'}
