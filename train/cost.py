"""What training costs: memory and arithmetic of one step, counted without weights on the meta device.

python -m train.cost --base sd3-medium --size 512 1024 --keep 1 0.25
"""

import argparse
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
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


class Bf16Autocast(TorchFunctionMode):
    """CUDA's autocast rules for the few functions that the models use, which the meta device does not have."""

    def __init__(self):
        super().__init__()
        self.casts: list[Tensor] | None = []  # autocast keeps its copies of weights until the forward pass ends

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.linear, F.conv2d, torch.conv2d):
            args = tuple(self._lower(arg) for arg in args)
        elif func in (F.layer_norm, F.rms_norm):
            args = (args[0].float(), *args[1:])
        elif func is F.scaled_dot_product_attention:
            return flash_attention(*(self._lower(arg) for arg in args))
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        lowered = value.to(torch.bfloat16)
        if isinstance(value, nn.Parameter) and self.casts is not None:
            self.casts.append(lowered)
        return lowered


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
