"""SD3 transformers as diffusers stores them: read the folder and rename to SD3's own keys.

Names follow SD3's reference code (Stability AI, sd3-ref) on one side and diffusers' `SD3Transformer2DModel` on the
other. Two differences go beyond names: queries, keys and values are stored apart, and where a norm has only shift and
scale, diffusers has them the other way round.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError
from .model.dit4sr import is_control_key, is_dead_key
from .weight_files import read_weights
from .weight_sets import weight_set

_MARKS = {
    "pos_embed.proj.weight",
    "time_text_embed.timestep_embedder.linear_1.weight",
    "transformer_blocks.0.attn.add_q_proj.weight",
}
_OUTSIDE = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_IN_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
_PART_OF = {part: (fused, index) for fused, parts in _FUSED.items() for index, part in enumerate(parts)}
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


def is_diffusers_sd3(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict is an SD3 transformer in diffusers' layout."""
    return state.keys() >= _MARKS


def to_sd3_keys(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename a `SD3Transformer2DModel` state dict to SD3's own keys, as `MMDiT` has them.

    Args:
        state: tensors by diffusers key.
        source: what to call it in messages.

    Returns:
        Tensors by SD3 key; queries, keys and values joined, shift before scale.

    Raises:
        CheckpointError: a key is unknown or a part of a joined tensor is missing.
    """
    last = max((int(match[1]) for match in map(_BLOCK.match, state) if match), default=-1)
    shift_last = {"norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear"}
    new: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        name, kind = _split(key)
        target, index = sd3_name(name, key, source)
        if name in shift_last:
            value = _shift_first(value, key, source)
        target = f"{target}.{kind}" if kind else target
        if index is None:
            new[target] = value
        else:
            parts.setdefault(target, {})[index] = value
    for target, found in parts.items():
        if len(found) != 3:
            raise CheckpointError(
                f"expected queries, keys and values for {target}, but {source} lacks one of them; download it again"
            )
        new[target] = _joined([found[index] for index in range(3)], target, source)
    return new


def _shift_first(value: Tensor, key: str, source: str) -> Tensor:
    if not value.ndim or len(value) % 2 or not len(value):
        raise CheckpointError(
            f"expected scale and shift in {key}, but {source} has the shape {tuple(value.shape)}; the file is damaged"
        )
    scale, shift = value.chunk(2)
    return torch.cat([shift, scale])


def _joined(parts: list[Tensor], target: str, source: str) -> Tensor:
    if not all(part.ndim and part.shape[1:] == parts[0].shape[1:] for part in parts):
        raise CheckpointError(
            f"expected queries, keys and values of one width for {target}, but {source} has "
            f"{[tuple(part.shape) for part in parts]}; the file is damaged"
        )
    return torch.cat(parts)


def read_transformer(path: str | Path) -> dict[str, Tensor]:
    """Read an SD3 transformer from a safetensors file or a diffusers folder, with SD3's own keys.

    Args:
        path: a file in SD3's or diffusers' layout, or a folder as diffusers saves one, whole or in shards; a
            pipeline's folder is searched for its `transformer`.

    Returns:
        Tensors by key, of the base alone. A file in neither layout comes back as it is, for `checkpoint.build_mmdit`
        to refuse.

    Raises:
        CheckpointError: files are missing, damaged or pickled.
    """
    path = Path(path)
    files = weight_set(path)
    keys = {key for file in files for key in read_weights(file, device="meta")}
    state: dict[str, Tensor] = {}
    for file in files:
        # A published model's file may hold its control as well, which is loaded apart.
        state |= read_weights(file, only=_is_base_key if keys >= _MARKS else None)
    return to_sd3_keys(state, path.name) if is_diffusers_sd3(state) else state


def is_diffusers_key(key: str) -> bool:
    """Tell whether a key is one of `SD3Transformer2DModel`'s."""
    try:
        sd3_name(_split(key)[0], key, "")
    except CheckpointError:
        return False
    return True


def _is_base_key(key: str) -> bool:
    return not (is_control_key(key) or is_dead_key(key))


def _split(key: str) -> tuple[str, str]:
    """Return the module's name and "weight" or "bias"; the position table alone stands without one of them."""
    name, _, kind = ("", "", "") if key in _OUTSIDE else key.rpartition(".")
    return (name, kind) if name else (key, "")


def sd3_name(name: str, key: str, source: str) -> tuple[str, int | None]:
    """Return SD3's name of a diffusers module and, for a part of a joined tensor, its place there."""
    match = _BLOCK.match(name)
    if match:
        block, inner = f"joint_blocks.{match[1]}.", match[2]
        if inner in _IN_BLOCK:
            return block + _IN_BLOCK[inner], None
        if inner in _PART_OF:
            fused, index = _PART_OF[inner]
            return block + fused, index
    elif name in _OUTSIDE:
        return _OUTSIDE[name], None
    raise CheckpointError(
        f"expected an SD3 transformer of diffusers, but {source} has the unknown key {key!r}; "
        "it is of another or a newer architecture"
    )
