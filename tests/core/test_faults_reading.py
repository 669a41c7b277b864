"""A drive that fails while a picture is read says so, and does not pass for a damaged picture; no clock is read."""

import ast
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import write
from picture_files import one_sentence

from eam_core import picture_files
from eam_core.errors import ImageError
from eam_core.images import load_image

ROOT = Path(__file__).resolve().parents[2]
# Who may ask for the time of day or of a file, and what for.
ASKS_THE_TIME = {
    "eam_core/batch_manifest.py": "written down for people",
    "eam_core/folder_report.py": "written down for people",
    "eam_core/captioning/exchange.py": "a server says until when it wants to be left alone; bounded",
    "nodes/folder_queue.py": "ComfyUI's queue carries it",
    "nodes/control_choices.py": "of files, compared for being another one only",
}


class FailingFile:
    """A file whose drive fails at the n-th reading."""

    def __init__(self, file, left: int) -> None:
        self.file, self.left = file, left

    def read(self, *args) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.file.read(*args)

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.file.close()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".gif"])
def test_a_drive_that_fails_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}")
    whole, open_plain = load_image(path).rgb, picture_files.open_plain
    for readings in range(100):
        monkeypatch.setattr(picture_files, "open_plain", lambda path, n=readings: FailingFile(open_plain(path), n))
        try:
            picture = load_image(path)
        except ImageError as error:
            # Pillow keeps to itself what befell the directory of a TIFF.
            unread = f"{path}: expected a readable file, got Input/output error; check its drive."
            assert str(error) == unread or (suffix == ".tif" and "or a damaged file" in str(error))
        else:
            break
    assert readings > 0 and (picture.rgb == whole).all()


def test_a_damaged_picture_is_still_called_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match="truncated or damaged") as error:
        load_image(path)
    one_sentence(error)


def times_asked(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            wall = name in ("time.time", "time.time_ns", "time.localtime", "time.ctime")
            if wall or node.attr in ("utcnow", "today", "getmtime", "st_mtime", "st_mtime_ns", "st_ctime"):
                yield name
            if node.attr == "now" and "date" in name:
                yield name


def test_nothing_hangs_on_the_time_of_day() -> None:
    """Durations come from clocks that only go forward; whoever asks for the time of day is listed, with the reason."""
    files = [*(ROOT / "eam_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]
    asking = {path.relative_to(ROOT).as_posix() for path in files if any(times_asked(path))}
    assert asking == set(ASKS_THE_TIME)
