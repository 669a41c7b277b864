"""A module in float32 for a while, its own tensors widened and narrowed again in place."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Widen a module's half-precision weights while the context lasts, which takes as much memory again.

    Half-precision numbers are float32 numbers too, so that afterwards every weight is what it was, to the bit.
    """
    tensors = [*chain(module.parameters(), module.buffers())]
    dtypes = [tensor.dtype for tensor in tensors]
    try:
        for tensor in tensors:
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes):
            if tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)
