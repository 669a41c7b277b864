"""Initial weights of a control, copied from the base it will control (EAM section 3.1, Table 3)."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .control import ControlStream
from .controlnet import ControlNet
from .layers import count_blocks, timestep_embedding

LRInit = Literal["noisy", "text", "random"]
RANDOM_STD = 0.02


@torch.no_grad()
def init_control(
    control: ControlStream, base: Mapping[str, Tensor], *, lr_init: LRInit = "noisy", zero_init: bool = True
) -> None:
    """Set every weight of `control` from the base's state dict (SD3 keys).

    Args:
        control: the stream to initialise, of the base's depth and width.
        base: the base's state dict.
        lr_init: where the LR stream's weights come from: the base's noisy-latent stream (NLB, the paper's choice),
            its text stream (TEB), or a normal distribution.
        zero_init: zero the layer that adds to the base's input, so that the model starts as the base itself.

    Raises:
        ValueError: unknown `lr_init`, or a base of another size.
    """
    if lr_init not in get_args(LRInit):
        raise ValueError(f"expected lr_init to be one of {get_args(LRInit)}, got {lr_init!r}")
    _check_depth(control, base)
    for parameter in control.parameters():
        nn.init.normal_(parameter, std=RANDOM_STD)
    source = {key: value.float() for key, value in base.items()}
    new = {f"lr_embedder.proj.{kind}": source[f"x_embedder.proj.{kind}"] for kind in ("weight", "bias")}
    for index in range(control.params.depth):
        prefix = f"joint_blocks.{index}."
        new |= _img_side(source, prefix + "x_block.", f"control_blocks.{index}.")
        if lr_init != "random":
            stream = "x_block." if lr_init == "noisy" else "context_block."
            new |= _lr_side(source, prefix + stream, f"control_blocks.{index}.")
    for name, target in control.state_dict(keep_vars=True).items():
        if name.endswith(("ln_q.weight", "ln_k.weight")):
            nn.init.ones_(target)
        if name in new:
            value = _fit(new[name], target, name)
            target.copy_(value.to(target))
    for block in control.blocks if zero_init else ():
        for parameter in block.img_out.parameters():
            nn.init.zeros_(parameter)


@torch.no_grad()
def init_controlnet(control: ControlNet, base: Mapping[str, Tensor]) -> None:
    """Set every weight of `control` from the base's state dict (SD3 keys), so that the model starts as the base itself.

    The copies start as the base's first blocks; the LR patch embedding and the layers behind the copies start at zero,
    as in the public SD3 ControlNets. The first step moves the latter, the second step everything.

    Args:
        control: the ControlNet to initialise, of the base's depth and width.
        base: the base's state dict.

    Raises:
        ValueError: a base of another size.
    """
    _check_depth(control, base)
    for name, target in control.named_parameters():
        if name.startswith("controlnet_blocks."):
            value = base[name.replace("controlnet_blocks.", "joint_blocks.", 1)]
            target.copy_(_fit(value, target, name))
        else:
            nn.init.zeros_(target)


def _check_depth(control: ControlStream | ControlNet, base: Mapping[str, Tensor]) -> None:
    depth = count_blocks(base, "joint_blocks.")
    if depth != control.params.depth:
        raise ValueError(f"expected a base of {control.params.depth} blocks like the control, got {depth}")


def _img_side(source: Mapping[str, Tensor], stream: str, target: str) -> dict[str, Tensor]:
    """Noisy queries, keys and values, and the modulation of the attention, as the base has them."""
    new = {}
    for kind in ("weight", "bias"):
        fused = source[f"{stream}attn.qkv.{kind}"]
        new[f"{target}img_attn.qkv.{kind}"] = fused
        new[f"{target}img_attn.q.{kind}"] = fused.chunk(3)[0]
        new[f"{target}img_mod.1.{kind}"] = source[f"{stream}adaLN_modulation.1.{kind}"]
        new[f"{target}img_out.{kind}"] = source[f"{stream}attn.proj.{kind}"]
    for norm in ("ln_q", "ln_k"):
        if f"{stream}attn.{norm}.weight" in source:
            new[f"{target}img_attn.{norm}.weight"] = source[f"{stream}attn.{norm}.weight"]
    return new


def _lr_side(source: Mapping[str, Tensor], stream: str, target: str) -> dict[str, Tensor]:
    """The LR stream of one block from one stream of the base."""
    new = {}
    for kind in ("weight", "bias"):
        fused = source[f"{stream}attn.qkv.{kind}"]
        new[f"{target}lr_attn.qkv.{kind}"] = fused
        new[f"{target}lr_attn.kv.{kind}"] = torch.cat(fused.chunk(3)[1:])
        new[f"{target}lr_mod.1.{kind}"] = source[f"{stream}adaLN_modulation.1.{kind}"]
        for ours, theirs in (("lr_attn.proj", "attn.proj"), ("lr_mlp.fc1", "mlp.fc1"), ("lr_mlp.fc2", "mlp.fc2")):
            if f"{stream}{theirs}.{kind}" in source:
                new[f"{target}{ours}.{kind}"] = source[f"{stream}{theirs}.{kind}"]
    for norm in ("ln_q", "ln_k"):
        if f"{stream}attn.{norm}.weight" in source:
            new[f"{target}lr_attn.{norm}.weight"] = source[f"{stream}attn.{norm}.weight"]
    vec = vec_of_a_clean_picture(source)
    table = F.linear(
        F.silu(vec), source[f"{stream}adaLN_modulation.1.weight"], source[f"{stream}adaLN_modulation.1.bias"]
    )
    new[f"{target}lr_mod_table"] = table.reshape(-1, vec.shape[-1])
    return new


def vec_of_a_clean_picture(source: Mapping[str, Tensor]) -> Tensor:
    """The base's modulation input [D] at time 0 without text: what a time-free LR stream starts from."""
    total = torch.zeros(())
    for name, x in (
        ("t_embedder", timestep_embedding(torch.zeros(1))[0]),
        ("y_embedder", torch.zeros(source["y_embedder.mlp.0.weight"].shape[1])),
    ):
        x = F.silu(F.linear(x, source[f"{name}.mlp.0.weight"], source[f"{name}.mlp.0.bias"]))
        total = total + F.linear(x, source[f"{name}.mlp.2.weight"], source[f"{name}.mlp.2.bias"])
    return total


def _fit(value: Tensor, target: Tensor, name: str) -> Tensor:
    """Cut leading modulation chunks where the stream needs fewer (dual attention has nine, the last block two)."""
    if "_mod" in name:
        value = value[: target.shape[0]]
    if value.shape != target.shape:
        raise ValueError(f"expected a base with {name} of shape {tuple(target.shape)}, got {tuple(value.shape)}")
    return value
