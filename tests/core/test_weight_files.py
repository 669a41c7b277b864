"""Weight files: metadata comes back, what is broken is refused in one sentence, nothing is half written."""

import json
import os
import re
import resource
import stat
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from eam_core.errors import CheckpointError, DiskError
from eam_core.weight_files import read_metadata, read_weights, save_weights


def some(*keys: str) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(1) for key in keys}


def test_metadata_comes_back(tmp_path):
    path = tmp_path / "x.safetensors"
    save_weights(path, {"a": torch.zeros(1)}, training={"steps": 3, "photos": ("a", "b")}, name="x")
    metadata = {key: json.loads(value) for key, value in read_metadata(path).items()}
    assert metadata == {"training": {"steps": 3, "photos": ["a", "b"]}, "name": "x"}
    save_weights(path, {"a": torch.zeros(1)})
    assert read_metadata(path) == {}


def header(size: int, text: bytes) -> bytes:
    return struct.pack("<Q", size) + text


def file_of(content: dict, data: bytes) -> bytes:
    text = json.dumps(content).encode()
    return header(len(text), text) + data


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
BROKEN = {
    "empty": (b"", "is truncated or something else; download it again"),
    "few bytes": (b"abc", "is truncated or something else; download it again"),
    "text": (b"<!DOCTYPE html><html>sign in</html>", "is truncated or something else; download it again"),
    "header larger than the file": (header(10**12, b'{"a": 1}'), "is truncated or something else; download it again"),
    "header one byte too large": (header(9, b'{"a": 1}'), "is truncated or something else; download it again"),
    "header cut off": (header(500, b'{"a": {"dtype"'), "is truncated or something else; download it again"),
    "not JSON": (header(8, b"{aaaaaaa"), r"is damaged or truncated \(.+\); download it again"),
    "no tensor": (header(8, b'{"a": 1}'), r"is damaged or truncated \(.+\); download it again"),
    "data cut off": (file_of({"a": F32}, b"0000"), r"is damaged or truncated \(.+\); download it again"),
    "offsets lie": (
        file_of({"a": F32 | {"shape": [9]}}, bytes(16)),
        r"is damaged or truncated \(.+\); download it again",
    ),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(64), "is GGUF; load it with a GGUF loader node and pass its MODEL"),
    "old pickle": (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        "is a pickle, which can run code when opened; get the .*",
    ),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused_in_one_sentence(tmp_path, data, message, device):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(data)
    sentence = rf"^expected a (whole )?safetensors file, but mine\.safetensors {message}$"
    with pytest.raises(CheckpointError, match=sentence):
        read_weights(path, device=device)
    with pytest.raises(CheckpointError, match=sentence):
        read_metadata(path)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it ran",))

    for legacy in (True, False):
        torch.save({"a": Trap()}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match=r"x\.pt is a pickle, .*get the \.safetensors version"):
            read_weights(tmp_path / "x.pt")
    assert not (tmp_path / "it ran").exists()


def test_missing_file_folder_and_impossible_name_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="found none; check the name and the folder"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=f"got the folder {re.escape(str(tmp_path))}; name the file inside it"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="name too long"):
        read_weights(tmp_path / ("x" * 300))


@pytest.mark.parametrize("size", [0x0280, 0x0380, 0x0480, 0x0580, 0x4B50])
def test_a_good_file_whose_header_size_looks_like_a_pickle_is_read(tmp_path, size):
    text = json.dumps({"a": F32}).encode().ljust(size)
    (tmp_path / "x.safetensors").write_bytes(header(size, text) + struct.pack("<4f", 1, 2, 3, 4))
    assert read_weights(tmp_path / "x.safetensors")["a"].tolist() == [1, 2, 3, 4]


def test_saving_makes_the_folder_casts_floats_only_and_takes_any_memory_layout(tmp_path):
    path = tmp_path / "new" / "folder" / "x.safetensors"
    picture = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    save_weights(path, {"a": picture, "b": nn.Parameter(picture[0].mT), "n": torch.tensor([3])}, dtype=torch.float16)
    state = read_weights(path)
    assert torch.equal(state["a"], picture.half())
    assert torch.equal(state["b"], picture[0].mT.half())
    assert state["n"].dtype == torch.int64


def test_saved_files_are_readable_like_any_other(tmp_path):
    save_weights(tmp_path / "x.safetensors", some("a"))
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x.safetensors", "plain")}
    assert len(modes) == 1, modes


@pytest.fixture
def full_disk():
    """Let no file grow beyond a megabyte, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.safetensors"
    save_weights(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    with pytest.raises(DiskError, match=r"could not write .*x\.safetensors \(.+\); free some space or choose another"):
        save_weights(path, {"a": torch.zeros(1 << 20)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("bug")])
def test_nothing_is_left_when_the_last_step_fails(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DiskError if isinstance(error, OSError) else type(error)):
        save_weights(tmp_path / "x.safetensors", some("a"))
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_by_metadata_or_tensors_that_cannot_be_stored(tmp_path):
    with pytest.raises(TypeError):
        save_weights(tmp_path / "x.safetensors", some("a"), strange=object())
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        save_weights(tmp_path / "x.safetensors", {"a": shared, "b": shared})
    assert os.listdir(tmp_path) == []


def test_a_file_where_the_folder_should_be_is_a_disk_error(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(DiskError, match="choose another folder"):
        save_weights(tmp_path / "taken" / "x.safetensors", some("a"))
