"""Where local vision-language models run: devices, dtypes, and memory that does not suffice."""

import pytest
import torch
from local_model_chats import SHORT, refused, small
from safetensors.torch import load_file

from eam_core.captioning import model_memory
from eam_core.captioning.local import LocalModel
from eam_core.captioning.messages import CaptionError


def test_weights_go_where_the_host_moves_them(local_folders):
    model = LocalModel(local_folders["qwen3_vl"], device=None)
    moved = model.module.to(torch.float64)  # of a host's moves, the one that shows on every machine
    (answer,) = model.generate([small()], SHORT)
    assert isinstance(answer, str) and model.module is moved
    assert next(moved.parameters()).dtype == torch.float64
    half = LocalModel(local_folders["qwen3_vl"], dtype=torch.bfloat16, device="cpu")
    numbers = sum(tensor.numel() for tensor in load_file(local_folders["qwen3_vl"] / "model.safetensors").values())
    assert half.folder.weight_bytes(torch.bfloat16) == 2 * numbers
    assert half.required_bytes > 2 * numbers
    assert next(half.module.parameters()).dtype == torch.bfloat16


def test_a_margin_is_for_keys_and_values_of_a_batch(local_models):
    config = local_models["qwen2_5_vl"].config  # 2 layers, 2 of 4 heads of 8 channels, MLP of 64, 32 channels
    one, two = (model_memory.margin_bytes(config, torch.float32, size) for size in (1, 2))
    assert two - one == 4096 * 4 * (2 * 2 * 2 * 8 + 2 * 64 + 4 * 32)


def test_too_little_memory(local_copy, monkeypatch):
    monkeypatch.setattr(model_memory, "free_bytes", lambda device: 2**28)
    model = LocalModel(local_copy, device="cpu")
    with pytest.raises(CaptionError, match=r"expected 0.5 GB of free memory for model, found 0.2 GB; choose a smaller"):
        model.generate([small()], SHORT)
    with pytest.raises(CaptionError, match=r"expected 0.5 GB of free memory on mps for model, found 0.2 GB"):
        model_memory.refuse_too_little("model", 2**29, torch.device("mps"))
    # A host that moves the weights looks after its device; only the weights themselves lie in main memory.
    assert isinstance(LocalModel(local_copy, device=None).generate([small()], SHORT)[0], str)


def test_free_memory_is_what_the_system_has():
    free = model_memory.free_bytes(torch.device("cpu"))
    assert free is not None and 2**26 < free < 2**46


@pytest.mark.parametrize("also", (False, True))
def test_memory_that_runs_out_while_weights_are_moved(local_copy, monkeypatch, also):
    model, moves = LocalModel(local_copy, device="cpu"), []

    def move(device):
        moves.append(str(device))
        if len(moves) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory") if also else RuntimeError("device lost")

    monkeypatch.setattr(model.module, "to", move)
    words = r"expected 0.5 GB of free memory on cpu for model, but it ran out" if also else r"failed \(device lost\)"
    with pytest.raises(CaptionError, match=words):
        model.generate([small()], SHORT)
    assert moves == ["cpu", "cpu"], "a part of the weights was left there"


def test_devices_that_are_not_there(local_copy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused(local_copy, "expected a CUDA device for model, found none", device="cuda")
    refused(
        local_copy, "expected a torch and a machine with MPS for model, found none; choose cpu or auto", device="mps"
    )
    for device in ("banana", "meta", "cuda:", "", "xpu"):
        words = f"expected auto, cpu, cuda, cuda:N or mps as the device for model, got '{device}'"
        refused(local_copy, words, device=device)
    assert LocalModel(local_copy).device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    refused(local_copy, "expected cuda:0 to cuda:1 for model, got cuda:2", device="cuda:2")
    chosen = [str(LocalModel(local_copy, device=name).device) for name in ("auto", "cuda", "cuda:1", "mps", "cpu")]
    assert chosen == ["cuda", "cuda", "cuda:1", "mps", "cpu"]
