"""Modules that are made without memory and then given the tensors of a file, once all of them fit."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .model.layers import Factory

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def fill(make: Callable[[Factory], ModuleT], state: Mapping[str, Tensor], source: str, factory: Factory) -> ModuleT:
    """Make a module without initialising it twice and give it the state's tensors.

    Args:
        make: makes it with the factory it is handed.
        state: tensors by key, all that the module has and no others.
        source: what to call them in messages.
        factory: of the host; without a dtype, most of the state's numbers tell it.

    Raises:
        CheckpointError: keys, shapes or number formats do not fit, or memory is short.
    """
    # Files may mix dtypes: the one of most numbers, unless asked for another.
    sizes = Counter[torch.dtype]()
    for value in state.values():
        sizes[value.dtype] += value.numel() if value.is_floating_point() else 0
    usual = max(sizes, key=lambda dtype: (sizes[dtype], dtype.is_floating_point))
    dtype = factory.dtype or (usual if usual.is_floating_point else torch.float32)
    module = make(replace(factory, dtype=dtype, device="meta"))
    return load_into(module, state, source, factory.device or "cpu")


def load_into(module: ModuleT, state: Mapping[str, Tensor], source: str, device: torch.device | str) -> ModuleT:
    """Give a module on the meta device the state's tensors; raises as `fill`, before memory is taken."""
    wanted = module.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(
            f"expected the keys of {type(module).__name__}, but {source} lacks {missing[:3] or 'none'} and adds "
            f"{extra[:3] or 'none'}; the file is incomplete or of a newer version"
        )
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"expected {key} of shape {tuple(value.shape)}, but {source} has {tuple(state[key].shape)}; "
                "the file is damaged or of another architecture"
            )
        if not state[key].is_floating_point():
            raise CheckpointError(
                f"expected {key} in floating point, but {source} has {state[key].dtype}; the file is damaged"
            )
    try:
        module = module.to_empty(device=device)
        module.load_state_dict(dict(state))
    # torch says RuntimeError where memory is short, on the CPU without a kind of its own.
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"expected the weights of {source} to fit into memory, but they cannot be loaded "
            f"({next(iter(str(error).splitlines()), type(error).__name__)}); free some, or choose a smaller model"
        ) from error
    return module.eval()
