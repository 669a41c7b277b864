"""The device and precision that a machine is best at, without being told: CUDA, Apple's GPUs (MPS), or the CPU."""

import platform
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_MACOS_WITH_BFLOAT16 = 14


def best_device() -> str:
    """Return "cuda" or "mps" where torch can use one, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def named_device(wanted: str) -> str:
    """Return the device a user means: the best one for "auto", else the one that is named."""
    return best_device() if wanted == "auto" else wanted


def usual_dtype(device: str | torch.device) -> torch.dtype:
    """Return what large weights are kept in: bfloat16, but float32 where a device is slow in it or lacks it.

    Never float16: SD3's T5 and the residual streams of large models leave its range.
    """
    kind = torch.device(device).type
    slow = kind == "cpu" or (kind == "mps" and int(platform.mac_ver()[0].split(".")[0] or 0) < _MACOS_WITH_BFLOAT16)
    return torch.float32 if slow else torch.bfloat16


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU where its device has none, as Apple's GPUs."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def without_autocast(device: str | torch.device) -> AbstractContextManager[object]:
    """Keep a part in its own precision, also where torch has no autocast for a device to turn off."""
    kind = torch.device(device).type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def free_cached() -> None:
    """Give back what torch keeps of freed memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
