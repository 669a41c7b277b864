"""Tensors of torch.save, read without unpickling: what torch reads comes back, anything else is refused and not run."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from eam_core.saved_tensor import NotATensor, read_saved_tensor


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(1, 3, 5),
        torch.randn(7).half(),
        torch.randn(2, 3).bfloat16(),
        torch.randn(2, 3, 4, 5, dtype=torch.float64),
        torch.randn(4, 6).T,
        torch.randn(10)[2:7],
        torch.randn(1, 3).expand(4, 3),
        torch.tensor(2.5),
        torch.arange(6).reshape(2, 3),
        torch.randn(300, 200)[:, 70:],
        torch.randn(3, requires_grad=True),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_what_torch_reads_comes_back(tmp_path, tensor):
    torch.save(tensor, tmp_path / "x.pt")
    read = read_saved_tensor(tmp_path / "x.pt")
    assert read.dtype == tensor.dtype
    assert torch.equal(read, torch.load(tmp_path / "x.pt", weights_only=True))


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_else_is_read_or_run(tmp_path):
    mark, path = tmp_path / "it ran", tmp_path / "x.pt"
    hooked = torch.zeros(2)
    hooked.note = Trap(mark)
    others = (
        Trap(mark),
        [torch.zeros(2), Trap(mark)],
        {"a": torch.zeros(2)},
        torch.nn.Parameter(torch.zeros(2)),
        hooked,
    )
    for value in others:
        torch.save(value, path)
        with pytest.raises(NotATensor, match="something that is not a tensor"):
            read_saved_tensor(path)
    for data in (pickle.dumps(Trap(mark)), b"", b"PK\x03\x04", b"junk" * 100):
        path.write_bytes(data)
        with pytest.raises(NotATensor, match=r"no archive of torch\.save"):
            read_saved_tensor(path)
    torch.save(torch.zeros(2), path, _use_new_zipfile_serialization=False)
    with pytest.raises(NotATensor, match=r"no archive of torch\.save"):
        read_saved_tensor(path)
    assert not mark.exists()


def rewritten(path: Path, changes: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> None:
    """Write an archive anew with other records."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in records.items():
            archive.writestr(name, changes.get(name.rpartition("/")[2], data))


def test_archives_that_promise_more_than_they_hold(tmp_path):
    path = tmp_path / "x.pt"

    def refused(message: str, changes: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> None:
        torch.save(torch.zeros(6, 2), path)
        rewritten(path, changes, compress)
        with pytest.raises(NotATensor, match=message):
            read_saved_tensor(path)

    torch.save(torch.zeros(6, 2), path)
    with zipfile.ZipFile(path) as archive:
        words = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert words.count(b"K\x0c") == 1 and words.count(b"K\x06K\x02\x86") == 1
    refused("not all there", {"data.pkl": words.replace(b"K\x0c", b"K\xff")})
    refused("lie nowhere", {"data.pkl": words.replace(b"K\x0c", b"J\xff\xff\xff\x7f")})
    refused("does not fit its numbers", {"data.pkl": words.replace(b"K\x06K\x02\x86", b"K\x07K\x02\x86")})
    refused("does not fit its numbers", {"data.pkl": words.replace(b"K\x06K\x02\x86", b"J\xff\xff\xff\xffK\x02\x86")})
    endless = words.replace(b"K\x06K\x02\x86", b"J\xff\xff\xff\x7fK\x02\x86").replace(b"K\x02K\x01\x86", b"K\0K\0\x86")
    refused("does not fit its numbers", {"data.pkl": endless})
    refused("something that is not a tensor", {"data.pkl": words.replace(b"K\x06K\x02\x86", b"K\x06K\x02\x87")})
    refused("description is damaged", {"data.pkl": words[:-1] + b"\xff"})
    refused("longer than", {"data.pkl": words + bytes(2**15)})
    refused("packed or longer", {"data.pkl": words}, zipfile.ZIP_DEFLATED)
    refused("longer than", {"0": bytes(2**20)})
    refused("little-endian", {"byteorder": b"big"})


def test_pipes_and_missing_files(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(FileNotFoundError):
        read_saved_tensor(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        read_saved_tensor(tmp_path)
