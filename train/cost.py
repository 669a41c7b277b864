"""What training costs: memory and arithmetic of one step, counted without weights on the meta device.

python -m train.cost --base sd3-medium --size 512 1024 --keep 1 0.25
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.recompute import RecomputedGuest

BASES = {
    "sd3-medium": MMDiTParams(depth=24, hidden_size=1536),
    "sd3.5-medium": MMDiTParams(
        depth=24, hidden_size=1536, pos_embed_max_size=384, qk_norm=True, dual_attention_blocks=tuple(range(13))
    ),
    "sd3.5-large": MMDiTParams(depth=38, hidden_size=2432, qk_norm=True),
}
FAMILIES = ("psi_dit", "controlnet")
NUM_TEXT_TOKENS = 333
GIB = 2**30
TERA = 1e12

BYTES_PER_FROZEN = 2  # bfloat16
BYTES_PER_TRAINED = 4 + 4 + 8 + 4  # float32: weight, gradient, AdamW's two moments, moving average
# SD3's autoencoder in float32 (train.parts), counted with `measured` on diffusers' AutoencoderKL: weights of encoder and
# decoder, and per pixel the peak of what lives while one picture is encoded, and its operations.
AUTOENCODER_BYTES = 335_276_364
ENCODER_BYTES_PER_PIXEL = 2_000
ENCODER_FLOPS_PER_PIXEL = 4e6


@dataclass(frozen=True)
class Card:
    """A GPU: memory in GiB, and the peak of dense bf16 arithmetic that its vendor states, in TFLOPS."""

    name: str
    gib: int
    tflops: float
    usable: float = 0.92  # the rest is the CUDA context and what the allocator cannot use


CARDS = (Card("RTX 4090", 24, 165.2), Card("A100", 40, 312), Card("A100", 80, 312), Card("H100", 80, 989.4))


@dataclass(frozen=True)
class Case:
    """What is trained: the control on a base, at one picture size."""

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
    """One forward and backward pass: parameters, operations, and the peak of what lives besides weights and gradients."""

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
    patches = {name: rule(getattr(F, name)) for name, rule in rules.items()}
    with patch.multiple(F, **patches, scaled_dot_product_attention=in_bf16(flash_attention)):
        yield


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend as a fused kernel does, which never holds the attention matrix; the meta device would take another."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


class LiveBytes(TorchDispatchMode):
    """Follow the memory of meta tensors made inside: how much lives, and the most that did."""

    def __init__(self, known: Iterator[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self.seen = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in known})

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return tree_map_only(Tensor, self._note, func(*args, **(kwargs or {})))

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" and storage not in self.seen:
            self.seen[storage] = True
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage.nbytes())
        return tensor

    def _free(self, size: int) -> None:
        self.live -= size


def build(case: Case) -> tuple[MMDiT, ControlStream | ControlNet]:
    """Build the frozen bfloat16 base and the float32 control on the meta device."""
    base = MMDiT(case.base, Factory(device="meta", dtype=torch.bfloat16)).requires_grad_(False)
    factory = Factory(device="meta", dtype=torch.float32)
    if case.family == "controlnet":
        return base, ControlNet(ControlNetParams.for_base(case.base, case.num_blocks), factory)
    shared = {name: getattr(case.base, name) for name in ("depth", "hidden_size", "in_channels", "qk_norm")}
    return base, ControlStream(ControlParams(**shared), factory)


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
    with FlopCounterMode(display=False) as flops, LiveBytes(iter(known)) as memory:
        copies: list[Tensor] = []
        with bf16_autocast(copies):
            positions = base.positions(side, side)
            guest = control.run(control.embed(lr, positions, keep))
            wrapped = RecomputedGuest(guest) if recompute else guest
            velocity = base(noisy, *vectors, guest=wrapped, positions=positions)
        forward_flops = flops.get_total_flops()
        copies.clear()
        with bf16_autocast():
            (velocity.float() - lr).square().mean().backward()
    frozen = sum(tensor.numel() for tensor in (*base.parameters(), *base.buffers()))
    num_trained = sum(p.numel() for p in trained)
    return Step(frozen, num_trained, forward_flops, flops.get_total_flops(), memory.peak)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
