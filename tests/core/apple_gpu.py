"""A stand-in for Apple's GPUs on any machine: tensors that say "mps", count on the CPU, and refuse what MPS refuses.

It refuses float64, and tensors of the CPU among those of the GPU (numbers excepted). What a test runs on it assumes
neither CUDA nor the CPU. Kernels, speed and rounding of the real device are not shown.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, CPU = torch.device("mps", 0), torch.device("cpu")
# What moves tensors between devices, or only reads a CPU tensor's numbers.
MOVES = {"_to_copy", "copy_", "lift_fresh", "_local_scalar_dense"}


class AppleTensor(torch.Tensor):
    """A tensor on the stand-in GPU; its numbers are in `held`, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "AppleTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=GPU, requires_grad=held.requires_grad,
        )  # fmt: skip

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"AppleTensor({self.held})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refuse, as the device's memory is not the CPU's."""
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on what the tensors hold."""
        return _run(func, args, kwargs or {})


class Moves(TorchFunctionMode):
    """Move tensors to the stand-in and into its tensors before torch looks for a driver of the real one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        if func is torch.Tensor.copy_ and isinstance(args[0], AppleTensor):
            args[0].held.copy_(_held(args[1]))
            return args[0]
        if func.__name__ == "__setitem__" and isinstance(args[0], AppleTensor):
            args[0].held[tree_map(_held, args[1])] = _held(args[2])
            return None
        if func.__name__ == "__getitem__" and isinstance(args[0], AppleTensor):
            return AppleTensor(args[0].held[tree_map(_held, args[1])])
        if func is torch.Tensor.to and not isinstance(args[0], AppleTensor):
            device, dtype, *_ = torch._C._nn._parse_to(*_on_device_of(args[1:]), **kwargs)
            if device is not None and device.type == "mps":
                plain = args[0].detach()
                return _wrapped(plain.to(dtype or plain.dtype, copy=True), {}, "to")
        if func is torch.Tensor.contiguous and isinstance(args[0], AppleTensor):
            return AppleTensor(args[0].held.contiguous(*args[1:], **kwargs))
        if func is torch._has_compatible_shallow_copy_type:
            return type(args[0]) is type(args[1]) and args[0].device == args[1].device
        if func is F.scaled_dot_product_attention:  # looks for a kernel of the device's before it is dispatched
            assert all(isinstance(arg, AppleTensor) for arg in args[:3])
            return AppleTensor(func(*map(_held, args), **{name: _held(value) for name, value in kwargs.items()}))
        return func(*args, **kwargs)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, AppleTensor) else leaf


def _on_device_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Say what `to(other tensor)` means."""
    return (args[0].device, args[0].dtype) if args and isinstance(args[0], torch.Tensor) else args


class AppleGPU(TorchDispatchMode):
    """While it lasts, tensors can be made on the stand-in."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on what the tensors hold."""
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    leaves = tree_flatten((args, kwargs))[0]
    ours = [leaf for leaf in leaves if isinstance(leaf, AppleTensor)]
    others = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, AppleTensor)]
    wanted = kwargs.get("device")
    to_gpu = torch.device(wanted).type == "mps" if wanted is not None else bool(ours)
    if ours and name not in MOVES and any(other.ndim for other in others):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found at least mps:0 and cpu!")
    if name == "copy_":
        to_gpu = isinstance(args[0], AppleTensor)
    held = tree_map(_held, (args, kwargs))
    if wanted is not None:
        held[1]["device"] = CPU
    result = func(*held[0], **held[1])
    # What was changed in place stays the same tensor.
    known = {id(leaf.held): leaf for leaf in ours}
    return tree_map(lambda leaf: _wrapped(leaf, known, name) if to_gpu else leaf, result)


def _wrapped(leaf: Any, known: dict[int, AppleTensor], name: str) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.dtype in (torch.float64, torch.complex128):
        raise TypeError(f"{name}: Cannot convert a MPS Tensor to float64 dtype as the MPS framework has no float64.")
    return known[id(leaf)] if id(leaf) in known else AppleTensor(leaf)


@contextmanager
def apple_gpu(monkeypatch: Any, macos: str = "15.0") -> Iterator[None]:
    """Let torch say that this machine has an Apple GPU and no CUDA, and make the stand-in work."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(platform, "mac_ver", lambda: (macos, ("", "", ""), "arm64"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: None)
    with AppleGPU(), Moves():
        yield
