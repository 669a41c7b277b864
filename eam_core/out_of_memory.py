"""Out of memory: how it is told from other failures, what is freed then, and what users are told in the end."""

import torch

from .device import free_cached
from .errors import EAMError

_SAID = ("out of memory", "can't allocate memory", "not enough memory")  # MPS, AcceleratorError; torch's CPU allocator


class OutOfMemory(EAMError, torch.OutOfMemoryError):
    """Even the smallest piece does not fit; a host that frees memory on torch's own error does so here too."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _SAID)


def free_unused() -> None:
    """Give back what torch keeps of freed memory; call it outside of the handler, which keeps the failed tensors."""
    free_cached()
