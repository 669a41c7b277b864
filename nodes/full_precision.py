"""A MODEL that computes in float32 for a while: core's own cast of each layer as it runs, for every layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_base
import torch

_CAST = "comfy_cast_weights"


def computes_in(base: comfy.model_base.BaseModel) -> torch.dtype:
    """Return the dtype that a model computes in, whatever its weights are kept in."""
    return base.manual_cast_dtype or base.get_dtype()


@contextmanager
def in_float32(base: comfy.model_base.BaseModel) -> Iterator[None]:
    """Cast weights to float32 layer by layer while the context lasts; nothing is kept in float32.

    Other packs' layers that do not know core's cast make the forward pass fail with a RuntimeError.
    """
    layers = [layer for layer in base.diffusion_model.modules() if getattr(layer, _CAST, None) is False]
    own = [_CAST in layer.__dict__ for layer in layers]
    before = base.manual_cast_dtype
    try:
        base.manual_cast_dtype = torch.float32
        for layer in layers:
            setattr(layer, _CAST, True)
        yield
    finally:
        base.manual_cast_dtype = before
        for layer, had in zip(layers, own, strict=True):
            if had:
                setattr(layer, _CAST, False)
            else:
                delattr(layer, _CAST)
