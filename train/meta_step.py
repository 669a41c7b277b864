"""One training step without weights: run it on the meta device and count its operations and its memory."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.recompute import RecomputedGuest

NUM_TEXT_TOKENS = 333
BYTES_PER_FROZEN = 2  # bfloat16
BYTES_PER_TRAINED = 4 + 4 + 8 + 4  # float32: weight, gradient, AdamW's two moments, moving average


@dataclass(frozen=True)
class Case:
    """What is trained: a control on a base, on square pictures of `size` pixels, with a share of LR tokens kept."""

    base: MMDiTParams
    family: str
    size: int
    keep: float = 1.0
    num_blocks: int = 12

    @property
    def num_tokens(self) -> int:
        """Image tokens."""
        return (self.size // 16) ** 2


@dataclass(frozen=True)
class Step:
    """One forward and backward pass: parameters, operations, peak of what lives besides weights and gradients."""

    frozen: int
    trained: int
    forward_flops: int
    flops: int
    activation_bytes: int

    @property
    def state_bytes(self) -> int:
        """Frozen weights, and trained ones with gradients, moments and moving average."""
        return self.frozen * BYTES_PER_FROZEN + self.trained * BYTES_PER_TRAINED


@contextmanager
def bf16_autocast(copies: list[Tensor] | None = None) -> Iterator[None]:
    """Apply CUDA's autocast rules, which the meta device lacks, to the functions that the models use.

    Args:
        copies: receives the lowered weights, which autocast keeps until the forward pass ends.
    """

    def lower(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        lowered = value.to(torch.bfloat16)
        if copies is not None and isinstance(value, nn.Parameter):
            copies.append(lowered)
        return lowered

    def in_bf16(function: Callable) -> Callable:
        return lambda *args, **kwargs: function(*map(lower, args), **kwargs)

    def in_fp32(function: Callable) -> Callable:
        return lambda x, *args, **kwargs: function(x.float(), *args, **kwargs)

    # Patched, because a torch function mode is suspended during the backward pass, which computes blocks again.
    rules = {"linear": in_bf16, "conv2d": in_bf16, "layer_norm": in_fp32, "rms_norm": in_fp32}
    replaced: dict[str, Any] = {name: rule(getattr(F, name)) for name, rule in rules.items()}
    with patch.multiple(F, **replaced, scaled_dot_product_attention=in_bf16(flash_attention)):
        yield


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend as a fused kernel does, which never holds the attention matrix; the meta device would take another."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


class Meter(TorchDispatchMode):
    """Follow what is computed inside on meta tensors: operations so far, bytes that live, and the most that did.

    torch's FlopCounterMode has the same formulas, but its module hooks keep alive what gradient checkpointing frees.
    """

    def __init__(self, known: Iterable[Tensor]):
        """Start at zero; the memory of `known` tensors is not counted."""
        super().__init__()
        self.flops = self.live_bytes = self.peak_bytes = 0
        self.seen = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in known})

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return tree_map_only(Tensor, self._note, out)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" and storage not in self.seen:
            self.seen[storage] = True
            self.live_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._free, storage.nbytes())
        return tensor

    def _free(self, size: int) -> None:
        self.live_bytes -= size


def build(case: Case) -> tuple[MMDiT, ControlStream | ControlNet]:
    """Build the frozen bfloat16 base and the float32 control on the meta device."""
    base = MMDiT(case.base, Factory(device="meta", dtype=torch.bfloat16)).requires_grad_(False)
    factory = Factory(device="meta", dtype=torch.float32)
    if case.family == "controlnet":
        return base, ControlNet(ControlNetParams.for_base(case.base, case.num_blocks), factory)
    shared = {name: getattr(case.base, name) for name in ("depth", "hidden_size", "in_channels", "qk_norm")}
    return base, ControlStream(ControlParams(**shared), factory)


@cache
def count_step(case: Case, *, micro_batch: int = 1, recompute: bool = False) -> Step:
    """Run one training step on the meta device and count it.

    Args:
        case: what is trained.
        micro_batch: samples of the step.
        recompute: gradient checkpointing of every block.
    """
    base, control = build(case)
    trained = [p for p in control.parameters() if p.requires_grad]
    for parameter in trained:  # gradients are counted with the weights, so they may not live here
        parameter.register_post_accumulate_grad_hook(_drop_gradient)
    side = case.size // 8
    with torch.device("meta"):
        noisy, lr = torch.empty(2, micro_batch, case.base.in_channels, side, side)
        context = torch.empty(micro_batch, NUM_TEXT_TOKENS, case.base.context_size)
        vectors = torch.empty(micro_batch), context, torch.empty(micro_batch, case.base.pooled_size)
        num_kept = max(1, round(case.keep * case.num_tokens))
        keep = None if case.keep == 1 else torch.zeros(micro_batch, num_kept, dtype=torch.long)
    known = [*base.parameters(), *base.buffers(), *control.parameters(), *control.buffers()]
    with Meter(known) as meter:
        copies: list[Tensor] = []
        with bf16_autocast(copies):
            positions = base.positions(side, side)
            guest = control.run(control.embed(lr, positions, keep))
            wrapped = RecomputedGuest(guest) if recompute else guest
            velocity = base(noisy, *vectors, guest=wrapped, positions=positions)
        forward_flops = meter.flops
        copies.clear()
        with bf16_autocast():
            (velocity.float() - lr).square().mean().backward()
    frozen = sum(tensor.numel() for tensor in (*base.parameters(), *base.buffers()))
    num_trained = sum(p.numel() for p in trained)
    return Step(frozen, num_trained, forward_flops, meter.flops, meter.peak_bytes)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
