"""Weights from strangers: what a header or a folder promises is checked before it costs memory or leads elsewhere."""

import json
import os
import pickle
import struct
import tracemalloc
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version

from eam_core.checkpoint import build_control, build_mmdit
from eam_core.control_files import read_control
from eam_core.diffusers_keys import to_sd3_keys
from eam_core.errors import CheckpointError
from eam_core.loading import spec_of
from eam_core.lora import merge
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.presets import SD3
from eam_core.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, read_header
from eam_core.weight_files import read_weights, save_weights
from eam_core.weight_sets import weight_set

TB = 10**12


def entry(shape=(4,), start=0, end=16, dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end], **more}


def write(path: Path, content, data: bytes = bytes(16)) -> Path:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


HEADERS = {
    "10 TB in one tensor": ({"a": entry((10 * TB // 4,), 0, 10 * TB)}, f"need {10 * TB} bytes, it has 16"),
    "10 TB in a place of 16 bytes": ({"a": entry((10 * TB // 4,))}, f"promises {10 * TB} bytes and has a place of 16"),
    "a product beyond 64 bits": ({"a": entry((2**40, 2**40))}, "an impossible shape"),
    "a product beyond 64 bits that is 0": ({"a": entry((2**40, 2**40, 0), 0, 0)}, "an impossible shape"),
    "a negative axis": ({"a": entry((-2, -2))}, "an impossible shape"),
    "an axis of 4.0": ({"a": entry((4.0,))}, "an impossible shape"),
    "an axis of true": ({"a": entry((True, 4))}, "an impossible shape"),
    "a thousand axes": ({"a": entry((1,) * 1000 + (4,))}, "an impossible shape"),
    "overlap": ({"a": entry(), "b": entry((2,), 8, 16)}, "'b' begins at byte 8 instead of 16"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, "'b' begins at byte 0 instead of 16"),
    "a hole": ({"a": entry((1,), 0, 4), "b": entry((2,), 8, 16)}, "'b' begins at byte 8 instead of 4"),
    "bytes of nobody": ({"a": entry((2,), 0, 8)}, "need 8 bytes, it has 16"),
    "end before start": ({"a": entry((4,), 16, 0)}, "has a place of -16"),
    "start below zero": ({"a": entry((4,), -16, 0)}, "has no start and end"),
    "three offsets": ({"a": entry() | {"data_offsets": [0, 8, 16]}}, "has no start and end"),
    "an unknown format": ({"a": entry(dtype="F1")}, "the unknown number format 'F1'"),
    "a format in a list": ({"a": entry() | {"dtype": ["F32"]}}, "the unknown number format"),
    "half bytes": ({"a": entry((32,), dtype="F4")}, "the unknown number format 'F4'"),
    "an entry of nothing": ({"a": None}, "the unknown number format None"),
    "two of one name": (b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2), "two entries of one name"),
    "a name with a newline": ({"a\nb": entry()}, r"is not a line of up to 1000 characters: 'a\nb'"),
    "a name that moves the cursor": ({"\x1b[2Ja": entry()}, "is not a line of up to 1000 characters"),
    "a name that turns text round": ({"\u202ea": entry()}, "is not a line of up to 1000 characters"),
    "a name of half a character": (b'{"\\ud800": %b}' % json.dumps(entry()).encode(), "is not a line of up to"),
    "a name of a megabyte": ({"a" * 2**20: entry()}, "is not a line of up to 1000 characters"),
    "metadata of numbers": ({"a": entry(), "__metadata__": {"x": 1}}, "its metadata are not texts by name"),
    "metadata in a list": ({"a": entry(), "__metadata__": []}, "its metadata are not texts by name"),
    "nested without end": (b'{"a":' + b"[" * 100_000, "no JSON of the usual kind"),
    "not a number": (b'{"a": NaN}', "its header holds NaN"),
    "a number without end": (b'{"a": ' + b"9" * 10_000 + b"}", "no JSON of the usual kind"),
    "bytes that are no text": (b'{"\xff": 1}', "no JSON of the usual kind"),
    "too many tensors": ({str(i): entry((0,), 0, 0) for i in range(MAX_TENSORS + 1)}, "tensors, at most"),
}


@pytest.mark.parametrize(("content", "reason"), HEADERS.values(), ids=HEADERS)
def test_hostile_headers_get_one_sentence(tmp_path, content, reason):
    path = write(tmp_path / "x.safetensors", content)
    for read in (read_weights, lambda path: read_weights(path, device="meta"), read_control):
        with pytest.raises(CheckpointError) as refused:
            read(path)
        message = str(refused.value)
        assert message.startswith("expected a whole safetensors file, but x.safetensors is damaged or truncated (")
        assert message.endswith("); download it again")
        assert reason in message
        assert message.isprintable()
        assert len(message) < 400


def test_no_header_takes_memory_before_it_is_refused(tmp_path):
    # A sparse file keeps the promise of its size, and costs nothing to whoever made it.
    path = tmp_path / "x.safetensors"
    for promised in (MAX_HEADER_BYTES + 1, 10**9):
        with path.open("wb") as file:
            file.write(struct.pack("<Q", promised) + b"{")
            file.truncate(promised + 8)
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=f"its header has {promised} bytes, at most"):
            read_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def test_a_sparse_file_of_ten_terabytes_gets_a_sentence(tmp_path):
    path = write(tmp_path / "x.safetensors", {"a": entry((10 * TB // 4,), 0, 10 * TB)}, b"")
    try:
        os.truncate(path, path.stat().st_size + 10 * TB)
    except OSError as error:
        pytest.skip(f"this file system holds no sparse file of 10 TB ({error.strerror})")
    with pytest.raises(CheckpointError, match="at most"):
        read_weights(path)


def test_good_headers_of_every_format_are_read(tmp_path):
    kinds = [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool]
    if Version(version("safetensors")) >= Version("0.7"):
        kinds.append(torch.complex64)
    state = {str(kind): torch.zeros(3, 2, dtype=kind) for kind in kinds} | {
        "none": torch.zeros(0, 5),
        "one": torch.ones(()),
    }
    save_weights(tmp_path / "x.safetensors", state, note={"deep": [[1]]})
    entries = read_header(tmp_path / "x.safetensors")
    assert {name: (each.dtype, each.shape) for name, each in entries.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()
    }
    read = read_weights(tmp_path / "x.safetensors", rows=1)
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {
        name: tuple(tensor[:1].shape if tensor.ndim else ()) for name, tensor in state.items()
    }


def test_a_pipe_or_device_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    for path in (tmp_path / "x.safetensors", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is a device or pipe; name a plain file"):
            read_weights(path)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.ckpt", "x.bin", "x.sft"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_no_pickle_is_opened_under_any_name(tmp_path, name, protocol):
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "it ran"), protocol=protocol))
    for read in (read_weights, read_control, spec_of):
        with pytest.raises(CheckpointError, match=r"is a pickle|something else"):
            read(tmp_path / name)
    assert not (tmp_path / "it ran").exists()


def small_base() -> dict[str, torch.Tensor]:
    params = MMDiTParams(depth=1, hidden_size=64, context_size=8, pooled_size=8, pos_embed_max_size=4)
    return {key: torch.zeros(value.shape) for key, value in MMDiT(params).state_dict().items()}


@pytest.mark.parametrize(
    ("key", "tensor", "reason"),
    [
        ("x_embedder.proj.weight", torch.empty(2**40, 0, 2, 2), "expected hidden_size of at most"),
        ("x_embedder.proj.weight", torch.empty(64, 2**40, 0, 2), "expected in_channels of at most"),
        ("x_embedder.proj.weight", torch.empty(64, 16, 2**40, 0), "expected patch_size of at most"),
        ("context_embedder.weight", torch.empty(0, 2**60), "expected context_size of at most"),
        ("x_embedder.proj.weight", torch.zeros(()), "ValueError"),
        ("context_embedder.weight", torch.zeros(()), "IndexError"),
        ("t_embedder.mlp.0.weight", torch.zeros(64, 256, dtype=torch.int64), "in floating point"),
    ],
)
def test_sizes_beyond_any_model_build_nothing(key, tensor, reason):
    with pytest.raises(CheckpointError, match=reason):
        build_mmdit(small_base() | {key: tensor}, "x", Factory())


def test_a_million_blocks_build_nothing():
    state = small_base() | {f"joint_blocks.{index}.x": torch.zeros(0) for index in range(10_000)}
    with pytest.raises(CheckpointError, match="expected depth of at most 512, got 10000"):
        build_mmdit(state, "x")
    marks = {
        "lr_embedder.proj.weight": torch.zeros(64, 16, 2, 2),
        "control_blocks.0.img_out.weight": torch.zeros(64, 64),
    }
    with pytest.raises(CheckpointError, match="expected depth of at most 512"):
        build_control(marks | {f"control_blocks.{index}.x": torch.zeros(0) for index in range(10_000)}, "x")


def test_weights_that_find_no_memory_get_a_sentence(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nfurther lines")

    monkeypatch.setattr(torch.nn.Module, "to_empty", fail)
    with pytest.raises(CheckpointError, match=r"fit into memory, .*can't allocate memory\); free some"):
        build_mmdit(small_base(), "x")


ELSEWHERE = ("../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "C:x.safetensors")


@pytest.mark.parametrize("name", [*ELSEWHERE, "x.bin", "x\n.safetensors", "", 5, None, ["x.safetensors"]])
def test_an_index_leads_nowhere_else(tmp_path, name):
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="expected a list of shards"):
        weight_set(index)


BROKEN_INDEXES = ("[" * 100_000, "[]", '{"weight_map": 5}', '{"weight_map": {}}', "\xff", "x" * (2**25 + 1))


@pytest.mark.parametrize("text", BROKEN_INDEXES, ids=range(len(BROKEN_INDEXES)))
def test_a_broken_index_gets_a_sentence(tmp_path, text):
    index = tmp_path / "x.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="expected a list of shards"):
        weight_set(index)


@pytest.mark.parametrize("name", ["x-00000-of-00000.safetensors", "x-00003-of-00002.safetensors"])
def test_impossible_numbers_of_shards(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="expected a shard's number and how many there are"):
        spec_of(tmp_path / name)


@pytest.mark.parametrize("note", ["[" * 100_000, "5", '"null_tokens"', '["null_tokens"]', "null", "{"])
def test_somebody_elses_training_notes_change_nothing(tmp_path, note):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"training": note})
    assert spec_of(tmp_path / "x.safetensors") is SD3


def test_tensors_of_diffusers_that_do_not_fit_each_other():
    name = "transformer_blocks.0.attn"
    parts = {f"{name}.to_{each}.weight": torch.zeros(4, width) for each, width in (("q", 4), ("k", 5), ("v", 4))}
    with pytest.raises(CheckpointError, match="queries, keys and values of one width"):
        to_sd3_keys(parts, "x")
    for tensor in (torch.zeros(()), torch.zeros(3, 4), torch.zeros(0, 4)):
        with pytest.raises(CheckpointError, match=r"expected scale and shift in norm_out\.linear\.weight"):
            to_sd3_keys({"norm_out.linear.weight": tensor}, "x")


def test_a_lora_on_a_weight_without_axes():
    change = SimpleNamespace(key="a", rows=None, module="m", up=torch.zeros(1, 1), down=torch.zeros(1, 1))
    with pytest.raises(CheckpointError, match="expected a model with a, which lora changes"):
        merge({"a": torch.zeros(())}, [change], "lora")
