"""Hostile picture files: each gives a picture or one sentence, within bounds of memory and time."""

import io
import os
import time
import warnings
from pathlib import Path

import pytest
import torch
from broken_pictures import GROUPS, chunk, encoded, exif, icc, photo, png
from picture_files import one_sentence
from PIL import Image, PngImagePlugin

from eam_core.errors import ImageError
from eam_core.images import encode_image, load_image
from eam_core.picture_files import MAX_FILE_BYTES, MAX_PROFILE_BYTES, MAX_SCANS, count_scans, sound_profile

SECONDS, MEGABYTES = 5.0, 150.0  # for one file, of processor time and memory; the worst takes a tenth of it


class Peak:
    """How much memory the process took at most since it was made, in MB; 0 where the system does not tell."""

    def __init__(self) -> None:
        self.before = self._read(reset=True)

    def grown(self) -> float:
        return self._read() - self.before

    def _read(self, reset: bool = False) -> float:
        try:
            if reset:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        except OSError:
            return 0.0
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def judged(path: Path) -> str:
    """Load a file; return what is wrong with how that went, or nothing."""
    peak, start = Peak(), time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            picture = load_image(path)
        except ImageError as error:
            message = str(error)
            if not message.endswith(".") or not message.isprintable() or len(message) > 600:
                return f"not one sentence: {message!r}"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        else:
            if not picture.rgb.isfinite().all() or min(picture.rgb.shape[-2:]) < 16:
                return f"no picture: {picture.rgb.shape}"
    if warned:
        return f"{len(warned)} warnings, such as {warned[0].message}"
    if (seconds := time.process_time() - start) > SECONDS:
        return f"{seconds:.1f} s"
    return f"{grown:.0f} MB" if (grown := peak.grown()) > MEGABYTES else ""


def test_there_are_more_than_two_hundred_kinds_of_breakage() -> None:
    assert sum(1 for make in GROUPS.values() for _ in make()) > 200


@pytest.mark.parametrize("group", GROUPS)
def test_broken_files_give_a_picture_or_a_sentence(tmp_path: Path, group: str) -> None:
    wrong = {}
    for name, data in GROUPS[group]():
        path = tmp_path / name
        path.write_bytes(data)
        if fault := judged(path):
            wrong[name] = fault
        path.unlink()
    assert not wrong


@pytest.mark.parametrize("kind", ["eps", "pdf", "ppm", "ico", "jpeg2000", "dds"])
def test_other_formats_are_refused_whatever_they_are_called(tmp_path: Path, kind: str) -> None:
    data = dict(GROUPS["other formats"]())[f"{kind}.png"]
    (tmp_path / "photo.png").write_bytes(data)
    with pytest.raises(ImageError, match="got something else") as error:
        load_image(tmp_path / "photo.png")
    one_sentence(error)


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    start = time.process_time()
    for name, words in (
        ("pipe.png", "expected a plain file, got a pipe"),
        ("zero.png", "expected a plain file"),
        ("loop.png", "expected a readable file"),
        ("folder.png", "got a folder"),
        ("a\0b.png", "a name that no file has"),
        ("n" * 300 + ".png", "expected a readable file"),
    ):
        with pytest.raises(ImageError, match=words) as error:
            load_image(tmp_path / name)
        one_sentence(error)
    assert time.process_time() - start < 2


def test_a_file_too_large_to_be_a_picture_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "endless.webp"
    path.write_bytes(encoded(photo(), "WEBP"))
    os.truncate(path, MAX_FILE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(ImageError, match="at most 1074 MB, got 1074 MB") as error:
        load_image(path)
    one_sentence(error)


def test_a_jpeg_of_many_scans_is_refused_and_a_usual_one_is_not(tmp_path: Path) -> None:
    whole = encoded(photo(64, 64), "JPEG", progressive=True)
    assert 5 < count_scans(whole) < 20
    last = whole[whole.rindex(b"\xff\xda") : -2]
    for repeats, refused in ((20, False), (2000, True)):
        (tmp_path / "scans.jpg").write_bytes(whole[:-2] + last * repeats + b"\xff\xd9")
        if refused:
            with pytest.raises(ImageError, match=f"at most {MAX_SCANS} scans, got 65 or more"):
                load_image(tmp_path / "scans.jpg")
        else:
            load_image(tmp_path / "scans.jpg")
    # Neither what is written inside a segment nor what follows the picture counts.
    inside = b"\xff\xe5" + (2 + 2000).to_bytes(2, "big") + b"\xff\xda" * 1000
    (tmp_path / "inside.jpg").write_bytes(whole[:2] + inside + whole[2:] + b"\xff\xda\0\2" * 500)
    load_image(tmp_path / "inside.jpg")


@pytest.mark.parametrize("value", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_orientation_is_read_as_pillow_reads_it(tmp_path: Path, value: int, order: str) -> None:
    from PIL import ImageOps

    data = Image.Exif()
    data.endian = order
    data[0x010F], data[0x0112], data[0x9003] = "a camera", value, "2026:01:01 00:00:00"
    photo(40, 24).save(tmp_path / "turned.png", exif=data)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))
    got = load_image(tmp_path / "turned.png").rgb[0].permute(1, 2, 0).mul(255).round().byte().numpy()
    assert got.tobytes() == expected.tobytes()


def test_exif_data_that_share_their_bytes_cost_nothing(tmp_path: Path) -> None:
    entries = [(tag, 1, 8_000_000, b"\0\0\0\0") for tag in range(1, 274)] + [(0x0112, 3, 1, b"\6\0\0\0")]
    (tmp_path / "bomb.png").write_bytes(png(width=40, before=chunk(b"eXIf", exif(entries).ljust(8_000_000, b"\0"))))
    peak, start = Peak(), time.process_time()
    assert load_image(tmp_path / "bomb.png").rgb.shape == (1, 3, 40, 32)  # and the orientation is still read
    assert peak.grown() < MEGABYTES and time.process_time() - start < SECONDS


def test_only_sound_profiles_are_passed_on() -> None:
    good = icc(256)
    assert sound_profile(good) == good
    bad = (icc(declared=9999), icc(tags=2**31), icc(tags=1), icc(space=b"CMYK"), icc(space=b"Lab "), good[:100], b"")
    assert [sound_profile(each) for each in bad if each != icc(tags=1)] == [None] * 6
    assert sound_profile(good.replace(b"acsp", b"acsq")) is None
    assert sound_profile(icc(MAX_PROFILE_BYTES + 4)) is None
    far = bytearray(icc(256, tags=1))
    far[136:144] = b"\0\0\0\xff\0\0\0\xff"  # a tag's offset and size
    assert sound_profile(bytes(far)) is None


def test_a_profile_that_no_file_holds_costs_the_profile_and_not_the_result(tmp_path: Path) -> None:
    photo().save(tmp_path / "big.webp", icc_profile=icc(20 * 2**20))
    picture = load_image(tmp_path / "big.webp")
    assert picture.icc_profile is None
    data = encode_image(picture, "result.jpg")
    assert Image.open(data).size == (48, 32)


def test_metadata_without_room_are_one_sentence() -> None:
    with pytest.raises(ImageError, match="expected a picture that JPEG can hold") as error:
        encode_image(torch.zeros(1, 3, 16, 16), "result.jpg", {"exif": bytes(70_000)})
    one_sentence(error)


def test_settings_of_other_packs_open_no_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some packs lift Pillow's limits for the whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 2**20)
    (tmp_path / "wide.png").write_bytes(png(100_000, 100_000, rows=b""))
    with pytest.raises(ImageError, match="got 100000 x 100000"):
        load_image(tmp_path / "wide.png")
    data = io.BytesIO()
    photo().save(data, "PPM")
    (tmp_path / "other.png").write_bytes(data.getvalue())
    with pytest.raises(ImageError, match="got something else"):
        load_image(tmp_path / "other.png")
