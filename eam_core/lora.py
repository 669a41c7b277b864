"""LoRA of an SD3 model in diffusers' names: which of SD3's own weights each module changes, and by how much.

A change is W' = W + B A: the files carry no alpha, so it equals the rank. SD3's layout has queries, keys and values in
one weight and shift before scale, and its autoencoder has its attention as 1 x 1 convolutions.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from .diffusers_keys import sd3_name
from .errors import CheckpointError
from .model.tsdsr import DOWN, LORA_PREFIX, UP, lora_modules

_ENCODER = (
    (r"encoder\.(conv_in|conv_out)", r"encoder.\1"),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(conv1|conv2)", r"encoder.down.\1.block.\2.\3"),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.conv_shortcut", r"encoder.down.\1.block.\2.nin_shortcut"),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.conv", r"encoder.down.\1.downsample.conv"),
    (r"encoder\.mid_block\.resnets\.0\.(conv1|conv2)", r"encoder.mid.block_1.\1"),
    (r"encoder\.mid_block\.resnets\.1\.(conv1|conv2)", r"encoder.mid.block_2.\1"),
    (r"encoder\.mid_block\.attentions\.0\.to_(q|k|v)", r"encoder.mid.attn_1.\1"),
    (r"encoder\.mid_block\.attentions\.0\.to_out\.0", r"encoder.mid.attn_1.proj_out"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """What one module of a LoRA changes.

    Attributes:
        module: diffusers' name of the module.
        key: SD3's name of the weight, as `MMDiT` and SD3's autoencoder have it.
        down: A, [rank, in, ...].
        up: B, [out, rank, ...].
        rows: first row and number of rows of the weight that change; None for all.
        swapped: the two halves of the rows stand the other way round in SD3's layout.
    """

    module: str
    key: str
    down: Tensor
    up: Tensor
    rows: tuple[int, int] | None = None
    swapped: bool = False

    def delta(self) -> Tensor:
        """Return B A in float32, [rows, in * ...], in SD3's order of rows."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return torch.cat(product.chunk(2)[::-1]) if self.swapped else product


def transformer_changes(state: Mapping[str, Tensor], source: str) -> tuple[LowRank, ...]:
    """Place every module of a transformer's LoRA in SD3's layout.

    Raises:
        CheckpointError: a module is unknown or one of its two tensors is missing or of another rank.
    """
    modules = sorted(lora_modules(state))
    last = max((int(name.split(".")[1]) for name in modules if name.startswith("transformer_blocks.")), default=-1)
    swapped = {"norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear"}
    changes = []
    for module in modules:
        down, up = _pair(state, module, source)
        name, part = sd3_name(module, f"{LORA_PREFIX}{module}{DOWN}", source)
        rows = None if part is None else (part * len(up), len(up))
        key = f"{name}.weight"
        changes.append(LowRank(module=module, key=key, down=down, up=up, rows=rows, swapped=module in swapped))
    return tuple(changes)


def encoder_changes(state: Mapping[str, Tensor], source: str) -> tuple[LowRank, ...]:
    """Place every module of an autoencoder's encoder LoRA in SD3's layout; raises like `transformer_changes`."""
    changes = []
    for module in sorted(lora_modules(state)):
        down, up = _pair(state, module, source)
        changes.append(LowRank(module=module, key=f"{encoder_name(module, source)}.weight", down=down, up=up))
    return tuple(changes)


def encoder_name(module: str, source: str) -> str:
    """Return SD3's name of a module of the autoencoder's encoder.

    Raises:
        CheckpointError: there is none.
    """
    for pattern, name in _ENCODER:
        match = re.fullmatch(pattern, module)
        if match:
            return match.expand(name)
    raise CheckpointError(
        f"expected a LoRA of the encoder of SD3's autoencoder, but {source} changes {module!r}; "
        "choose the vae.safetensors that came with transformer.safetensors"
    )


def merge(
    state: Mapping[str, Tensor], changes: Iterable[LowRank], source: str, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Add changes to weights; sums are made in float32 and rounded once.

    Args:
        state: weights by SD3's names, of any dtype.
        changes: of one LoRA.
        source: what to call the LoRA in messages.
        dtype: of the weights that change; their own when None.

    Returns:
        All of `state`; what changed is new.

    Raises:
        CheckpointError: see `check_changes`.
    """
    changes = list(changes)
    check_changes(changes, {key: value.shape for key, value in state.items()}, source)
    new = dict(state)
    sums: dict[str, Tensor] = {}
    for change in changes:
        weight = sums.get(change.key)
        if weight is None:
            weight = sums[change.key] = state[change.key].to(torch.float32, copy=True)
        part = weight if change.rows is None else weight.narrow(0, *change.rows)
        part += change.delta().to(part.device).view(part.shape)
    return new | {key: weight.to(dtype or state[key].dtype) for key, weight in sums.items()}


def check_changes(changes: Iterable[LowRank], shapes: Mapping[str, tuple[int, ...] | None], source: str) -> None:
    """Refuse changes whose weights are not there or have another shape.

    Raises:
        CheckpointError: the LoRA belongs to another model, or is damaged.
    """
    for change in changes:
        shape = shapes.get(change.key)
        if not shape:
            raise CheckpointError(
                f"expected a model with {change.key}, which {source} changes, got one without it; "
                "choose the model that the LoRA was trained on"
            )
        wanted = (shape[0] if change.rows is None else shape[0] // 3, prod(shape[1:]))
        got = (change.up.shape[0], prod(change.down.shape[1:]))
        if wanted != got:
            raise CheckpointError(
                f"expected a change of {change.key} with {wanted[0]} x {wanted[1]} values, but {source} has "
                f"{got[0]} x {got[1]} for {change.module}; it belongs to another model, or is damaged"
            )


def _pair(state: Mapping[str, Tensor], module: str, source: str) -> tuple[Tensor, Tensor]:
    down, up = (state.get(f"{LORA_PREFIX}{module}{end}") for end in (DOWN, UP))
    if down is None or up is None:
        raise CheckpointError(
            f"expected both {DOWN[1:]} and {UP[1:]} of {module}, but {source} lacks one of them; download it again"
        )
    matrices = down.ndim >= 2 and up.ndim >= 2 and len(down) == up.shape[1] and prod(up.shape[2:]) == 1
    if not matrices or not (down.is_floating_point() and up.is_floating_point()):
        raise CheckpointError(
            f"expected matrices of one rank for {module}, but {source} has {tuple(down.shape)} and {tuple(up.shape)} "
            f"of {down.dtype} and {up.dtype}; the file is damaged"
        )
    return down, up
