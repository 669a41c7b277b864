"""Paths of a workflow lead nowhere but into the folders that ComfyUI opens to it, and never hang."""

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from eam_core.errors import EAMError, FolderError, ImageError
from eam_core.folder_batch import Batch, BatchSettings
from eam_core.folder_names import Saver, list_pictures
from eam_core.folder_places import Root, check_name, check_suffix, resolve_folder

OUTSIDE = (
    "..",
    "../x",
    "a/../../x",
    "a\\..\\..\\x",
    "./../x",
    "a/./../../x",
    "/etc",
    "//etc",
    "\\\\host\\share",
    "C:\\Windows",
    "c:x",
    "file:///etc",
    "/proc/self/root",
    "/dev/fd/0",
    "~/../../etc/..",
    "link",
    "link/deeper",
    "a/back",
)
UNUSABLE = (
    "a\nb",
    "a\rb",
    "a\0b",
    "a\x1b[31mb",
    "a\x9bb",
    "a\u202egnp",
    "a\u2066b",
    "a\u200fb",
    "a\u2028b",
    "a\ud800b",
    "a\udcffb",
    "n" * 256,
    "日" * 86,
    "a/" * 2000,
    "n" * 2**20,
    "CON",
    "con.txt",
    "a/LPT9.x",
    "aux .png",
    "CONIN$",
    "COM¹",
)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "other" / "deeper").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "root" / "a" / "back").symlink_to("../..")
    return Root(path=tmp_path / "root", name="ComfyUI's input folder", widget="folder")


@pytest.mark.parametrize("text", [*OUTSIDE, *UNUSABLE])
def test_folders_outside_and_names_that_mislead_are_refused(root: Root, text: str) -> None:
    if text == "file:///etc" or text.startswith("~"):  # names like others, if odd ones, or with .. in them
        assert text.startswith("~") or resolve_folder(text, root, windows=False).is_relative_to(root.path)
        return
    with pytest.raises(FolderError) as error:
        resolve_folder(text, root)
    message = str(error.value)
    assert message.startswith("folder: expected") and message.isprintable() and len(message) < 2200


def test_usual_folders_of_all_scripts_are_taken(root: Root) -> None:
    for text in ("a", "a/b c", "Fotos 2026 (neu)", "写真", "عکس\u200cها", "n" * 255, "emoji 🐈\u200d⬛"):
        assert resolve_folder(text, root) == root.path / text


def test_names_and_suffixes(root: Root) -> None:
    check_suffix("_x4")
    for suffix in ("/../x", "\\x", "\u202egnp.", "\ud800", "\x9b", "\0", "a:b", "x" * 101):
        with pytest.raises(FolderError):
            check_suffix(suffix)
    with pytest.raises(FolderError):
        check_name("dot.", "folder", windows=True)


@pytest.mark.parametrize("pattern", ["[" * 2**20, "*" * 2**20, "[!a-" * 300, "*a" * 501, ";" * 2**20])
def test_patterns_made_to_be_slow_are_refused(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.png").touch()
    start = time.process_time()
    with pytest.raises(FolderError, match="pattern: expected at most 1000 characters") as error:
        list_pictures(tmp_path, pattern)
    assert time.process_time() - start < 1 and len(str(error.value)) < 500


@pytest.mark.parametrize("pattern", ["[" * 1000, "[!a-" * 250, "*a" * 500, "**" * 500, "[z-a].png", "[\\"])
def test_patterns_as_long_as_they_may_be_are_quick(tmp_path: Path, pattern: str) -> None:
    (tmp_path / ("a" * 200 + ".png")).touch()
    start = time.process_time()
    try:
        list_pictures(tmp_path, pattern)
    except FolderError as error:
        assert str(error).isprintable()
    assert time.process_time() - start < 4


def make_hostile_folder(folder: Path) -> None:
    """Fill a folder with what no picture should be, and three good pictures among it."""
    folder.mkdir()
    for name in ("1 good.png", "5 good\n\x1b[2J.png", "9 good.png"):
        Image.new("RGB", (20, 20), "red").save(folder / name)
    os.mkfifo(folder / "2 pipe.png")
    (folder / "2 device.png").symlink_to("/dev/zero")
    (folder / "3 outside.png").symlink_to("/etc/passwd")
    (folder / "3 loop.png").symlink_to(folder / "3 loop.png")
    (folder / "4 folder.png").mkdir()
    (folder / "4 empty.png").touch()
    (folder / "6 huge.png").touch()
    os.truncate(folder / "6 huge.png", 2**40)
    (folder / "7 text.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    (folder / "8 half.png").write_bytes((folder / "1 good.png").read_bytes()[:60])


def test_one_bad_file_never_ends_a_pass(tmp_path: Path) -> None:
    make_hostile_folder(tmp_path / "in")
    good = ["1 good.png", "5 good\n\x1b[2J.png", "9 good.png"]
    settings = BatchSettings(folder=tmp_path / "in", output=tmp_path / "out", source="in", savers=(Saver(key="1"),))
    batch, start = Batch(settings), time.process_time()
    while work := batch.pick():
        try:
            picture = batch.load(work)
            batch.save(work, "1", [picture], {})
        except EAMError as error:
            assert isinstance(error, ImageError)
            batch.fail(work, str(error))
    assert time.process_time() - start < 5
    assert batch.finished == set(good)
    assert set(batch.failed) == {"3 outside.png", "4 empty.png", "6 huge.png", "7 text.png", "8 half.png"}
    assert all(message.isprintable() for message in batch.failed.values())
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*good, "eam_folder.jsonl"])


def test_a_picture_that_turns_into_a_pipe_or_a_link_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / "in" / name)
    batch = Batch(BatchSettings(folder=tmp_path / "in", output=tmp_path / "out", source="in"))
    for name, make in (("1.png", os.mkfifo), ("2.png", lambda path: os.symlink("/etc/passwd", path))):
        os.remove(tmp_path / "in" / name)
        make(tmp_path / "in" / name)
        work = batch.pick()
        with pytest.raises(ImageError, match=r"plain file|leads outside"):
            batch.load(work)
    batch.load(batch.pick())


def test_results_never_leave_through_links(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "in" / "sub" / "1.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "in" / "2.png")
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "precious.png").write_bytes(b"precious")
    (tmp_path / "out" / "2.png").symlink_to(tmp_path / "elsewhere" / "precious.png")
    savers = (Saver(key="1"),)
    places = {"folder": tmp_path / "in", "output": tmp_path / "out", "source": "in"}
    batch = Batch(BatchSettings(**places, savers=savers, subfolders=True, overwrite=True))
    while work := batch.pick():
        picture = batch.load(work)
        if work.name == "sub/1.png":
            with pytest.raises(FolderError, match="a link that leads outside"):
                batch.save(work, "1", [picture], {})
        else:  # the link itself is replaced, and what it led to stays
            batch.save(work, "1", [picture], {})
    assert os.listdir(tmp_path / "elsewhere") == ["precious.png"]
    assert (tmp_path / "elsewhere" / "precious.png").read_bytes() == b"precious"
    assert not (tmp_path / "out" / "2.png").is_symlink()
