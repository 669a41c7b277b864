"""The device that a local vision-language model runs on."""

import torch

from ..device import best_device
from .messages import CaptionError


def usual_device() -> torch.device:
    """Return CUDA or MPS where there is one, else the CPU."""
    return torch.device(best_device())


def choose_device(wanted: str | torch.device, name: str) -> torch.device:
    """Return the device that a user names.

    Args:
        wanted: "auto", "cpu", "cuda", "cuda:N" or "mps".
        name: of the model, for messages.

    Raises:
        CaptionError: there is no such device.
    """
    if wanted == "auto":
        return usual_device()
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise CaptionError(f"expected auto, cpu, cuda, cuda:N or mps as the device for {name}, got {str(wanted)!r}")
    if device.type == "cuda":
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not number:
            raise CaptionError(f"expected a CUDA device for {name}, found none; choose cpu or auto")
        if (device.index or 0) >= number:
            raise CaptionError(f"expected cuda:0 to cuda:{number - 1} for {name}, got {device}; choose one of them")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise CaptionError(f"expected a torch and a machine with MPS for {name}, found none; choose cpu or auto")
    return device
