"""DiT4SR (Duan et al. 2025): LR tokens as a third stream of SD3.5's blocks, which computes the blocks in their stead.

LR tokens run through the base's own layers beside the noisy tokens. New in a block are a second linear layer after each
of the LR tokens' query, key and value, their output projection, and a depthwise convolution that brings what the base's
feed-forward makes of the LR tokens to the noisy ones. All of that sits inside the block, so a run computes the block
from the host's modules by the names that SD3 gave them; weights, LoRA, casts and offloading stay the host's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .control import LRMemory
from .layers import HEAD_DIM, TORCH, Factory, count_blocks, gated, modulate
from .mmdit import FIT_FIELDS, Block, Host

KeyRule = Literal["first", "r1"]
"""Which keys the LR tokens offer; see `ControlledAttention.project`. `first` is dit4sr_q's and dit4sr_f's."""

MARKS = {"transformer_blocks.0.attn.to_q_control.weight", "transformer_blocks.0.ff.control_conv.weight"}
"""Keys that only DiT4SR's published files have."""

_CONTROL_KEY = re.compile(r"transformer_blocks\.\d+\.(attn2?\.to_(q|k|v|out)_control|ff\.control_conv)\.(weight|bias)")
# Made by their authors' code for the second attention, never used in it.
_DEAD_KEY = re.compile(r"transformer_blocks\.\d+\.attn2\.(add_[qkv]_proj|to_add_out|norm_added_[qk])\.(weight|bias)")
_LICENSE = (
    "DiT4SR's weights are for non-commercial use: its authors' Pi-Lab License 1.0 and Stability AI's community licence "
    "of Stable Diffusion 3.5 apply"
)
_RULES = {
    "first": "LR keys by the rule of the first release (dit4sr_q, dit4sr_f)",
    "r1": "LR keys by the rule of the revised release (dit4sr_r1)",
}


def is_control_key(key: str) -> bool:
    """Tell whether a key of a published file is one of the control's, as `DiT4SR` has them."""
    return _CONTROL_KEY.fullmatch(key) is not None


def is_dead_key(key: str) -> bool:
    """Tell whether a key of a published file is neither the control's nor the base's, and without effect."""
    return _DEAD_KEY.fullmatch(key) is not None


@dataclass(frozen=True, kw_only=True)
class DiT4SRParams:
    """Architecture of a DiT4SR control; all but the last two follows the base.

    Args:
        dual_attention_blocks: blocks of the base whose image side has a second self-attention.
        key_rule: see `KeyRule`; weights belong to their rule and make broken pictures with the other.
        conv_scale: factor on what the convolutions bring to the noisy tokens; 1.2 as published.
    """

    fit_fields = (*FIT_FIELDS, "dual_attention_blocks")
    settings = ("key_rule", "conv_scale")
    preset = "dit4sr"
    depth: int
    hidden_size: int
    in_channels: int = 16
    patch_size: int = 2
    qk_norm: bool = True
    dual_attention_blocks: tuple[int, ...] = ()
    key_rule: KeyRule = "first"
    conv_scale: float = 1.2

    def __post_init__(self):
        if self.key_rule not in get_args(KeyRule):
            raise ValueError(f"expected key_rule to be one of {get_args(KeyRule)}, got {self.key_rule!r}")
        if self.hidden_size < HEAD_DIM or self.hidden_size % HEAD_DIM:
            raise ValueError(f"expected hidden_size to be a multiple of {HEAD_DIM}, got {self.hidden_size}")
        if not 0 <= self.conv_scale < float("inf"):
            raise ValueError(f"expected conv_scale of at least 0, got {self.conv_scale}; 1.2 is the published value")

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "DiT4SRParams":
        """Read every size from the keys and shapes of the control's tensors, and the key rule from their values.

        The first release never trained `to_k_control`, so there it still is the zero that it started from. Tensors on
        the meta device have no values; they give that rule too.
        """
        hidden_size = state["transformer_blocks.0.attn.to_q_control.weight"].shape[0]
        depth = count_blocks(state, "transformer_blocks.")
        dual = (i for i in range(depth) if f"transformer_blocks.{i}.attn2.to_q_control.weight" in state)
        keys = (value for key, value in state.items() if ".to_k_control." in key and not value.is_meta)
        return cls(
            depth=depth,
            hidden_size=hidden_size,
            dual_attention_blocks=tuple(dual),
            key_rule="r1" if any(bool(value.any()) for value in keys) else "first",
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Licence and key rule."""
        return _LICENSE, _RULES[self.key_rule]


class ControlledAttention(nn.Module):
    """What one attention of the base gets for its LR tokens."""

    def __init__(self, size: int, factory: Factory = TORCH):
        super().__init__()
        self.to_q_control = factory.linear(size, size)
        self.to_k_control = factory.linear(size, size)
        self.to_v_control = factory.linear(size, size)
        self.to_out_control = factory.linear(size, size)

    def project(self, base: Any, both: Tensor, key_rule: KeyRule) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [B, H, 2N, d] of noisy and LR tokens.

        The LR tokens' come from the base's projection and then their own. By the key rule of the first release LR
        token i offers the key of noisy token i instead, normalised and then normalised once more.

        Args:
            base: the base's attention weights.
            both: modulated noisy tokens, then as many LR tokens [B, 2N, D].
            key_rule: see `KeyRule`.
        """
        img, lr = base.qkv(both).chunk(2, dim=1)
        img_q, img_k, img_v = (split_heads(part) for part in img.chunk(3, dim=-1))
        lr_q, lr_k, lr_v = lr.chunk(3, dim=-1)
        img_k = base.ln_k(img_k)
        new_k = img_k if key_rule == "first" else split_heads(self.to_k_control(lr_k))
        return (
            torch.cat([base.ln_q(img_q), base.ln_q(split_heads(self.to_q_control(lr_q)))], dim=2),
            torch.cat([img_k, base.ln_k(new_k)], dim=2),
            torch.cat([img_v, split_heads(self.to_v_control(lr_v))], dim=2),
        )

    def output(self, base: Any, attended: Tensor, both: Tensor) -> Tensor:
        """Project what was attended to [B, 2N, D]; LR tokens add what they came in with, `both`, before theirs."""
        img, lr = attended.chunk(2, dim=1)
        return torch.cat([base.proj(img), self.to_out_control(lr + both.chunk(2, dim=1)[1])], dim=1)


class ControlledFeedForward(nn.Module):
    """What the base's feed-forward gets: a convolution over the LR tokens' hidden layer."""

    def __init__(self, size: int, factory: Factory = TORCH):
        super().__init__()
        self.control_conv = factory.depthwise_conv(4 * size)

    def forward(self, base: Any, both: Tensor, grid: tuple[int, int], conv_scale: float) -> Tensor:
        """Run noisy and LR tokens [B, 2N, D], which lie on a grid of (rows, columns), through the base's layers."""
        img, lr = F.gelu(base.fc1(both), approximate="tanh").chunk(2, dim=1)
        picture = rearrange(lr, "b (h w) c -> b c h w", h=grid[0], w=grid[1])
        brought = rearrange(self.control_conv(picture), "b c h w -> b (h w) c")
        return base.fc2(torch.cat([img + conv_scale * brought, lr], dim=1))


class DiT4SRBlock(nn.Module):
    """What one block of the base gets, under the names of the published files."""

    def __init__(self, params: DiT4SRParams, index: int, factory: Factory = TORCH):
        super().__init__()
        size = params.hidden_size
        self.attn = ControlledAttention(size, factory)
        self.attn2 = ControlledAttention(size, factory) if index in params.dual_attention_blocks else None
        self.ff = ControlledFeedForward(size, factory)

    def forward(
        self, base: Any, img: Tensor, lr: Tensor, txt: Tensor, vec: Tensor, host: Host, params: DiT4SRParams
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute a block of the base with LR tokens in it.

        Args:
            base: the joint block, an nn.Module with SD3's names inside.
            img: noisy tokens [B, N, D].
            lr: LR tokens [B, N, D].
            txt: text tokens [B, T, D].
            vec: modulation [B, D], the same for all three.
            host: whose block it is.
            params: key rule and conv_scale of this run.

        Returns:
            img, lr and txt after the block.
        """
        x_block, num_txt = base.x_block, txt.shape[1]
        chunks = x_block.adaLN_modulation(vec).chunk(9 if self.attn2 is not None else 6, dim=-1)
        both = torch.cat([img, lr], dim=1)
        inner = modulate(both, chunks[0], chunks[1])
        txt_side = TextSide(base.context_block, txt, vec)
        projected = self.attn.project(x_block.attn, inner, params.key_rule)
        attended = host.attend(*(torch.cat(parts, dim=2) for parts in zip(txt_side.qkv, projected)))
        out = gated(both, chunks[2], self.attn.output(x_block.attn, attended[:, num_txt:], inner))
        if self.attn2 is not None:
            inner = modulate(both, chunks[6], chunks[7])
            attended2 = host.attend(*self.attn2.project(x_block.attn2, inner, params.key_rule))
            out = gated(out, chunks[8], self.attn2.output(x_block.attn2, attended2, inner))
        inner = modulate(out, chunks[3], chunks[4])
        out = gated(out, chunks[5], self.ff(x_block.mlp, inner, host.grid, params.conv_scale))
        img, lr = out.chunk(2, dim=1)
        return img, lr, txt_side.finish(attended[:, :num_txt])


class TextSide:
    """The text side of a joint block, computed by the base's own modules; the control changes nothing in it."""

    def __init__(self, base: Any, txt: Tensor, vec: Tensor):
        """Project txt [B, T, D] to queries, keys and values [B, H, T, d] under vec [B, D]."""
        self.base, self.txt = base, txt
        self.chunks = base.adaLN_modulation(vec).chunk(2 if base.pre_only else 6, dim=-1)
        parts = base.attn.qkv(modulate(txt, self.chunks[0], self.chunks[1])).chunk(3, dim=-1)
        q, k, v = (split_heads(part) for part in parts)
        self.qkv = base.attn.ln_q(q), base.attn.ln_k(k), v

    def finish(self, attended: Tensor) -> Tensor:
        """Return the text tokens after the block; the last block has no further use for them."""
        if self.base.pre_only:
            return self.txt
        txt = gated(self.txt, self.chunks[2], self.base.attn.proj(attended))
        return gated(txt, self.chunks[5], self.base.mlp(modulate(txt, self.chunks[3], self.chunks[4])))


class DiT4SR(nn.Module):
    """The control half of a published DiT4SR model, by its own keys."""

    replaces_block, has_strength, can_remember = True, False, False

    def __init__(self, params: DiT4SRParams, factory: Factory = TORCH):
        """Build the network."""
        super().__init__()
        self.params = params
        self.transformer_blocks = nn.ModuleList(DiT4SRBlock(params, i, factory) for i in range(params.depth))

    @property
    def blocks(self) -> list[DiT4SRBlock]:
        """The blocks' parts in the order of the base's blocks."""
        return cast(list[DiT4SRBlock], list(self.transformer_blocks))

    def remember(self, lr_latents: Tensor, host: Host) -> list[LRMemory]:
        """Refuse: LR tokens attend to the noisy ones, so their state changes at every step."""
        raise ValueError("expected a control whose LR state is the same at every step, got DiT4SR")

    def start(
        self, lr: Tensor | list[LRMemory], host: Host, *, control_scale: float = 1.0, keep: Tensor | None = None
    ) -> "DiT4SRRun":
        """Start one forward pass, see `ControlFamily.start`; `control_scale` has no meaning here.

        Raises:
            ValueError: `keep` is given; the convolution needs every LR token in its place.
        """
        if keep is not None:
            raise ValueError("expected keep to be None, because DiT4SR's convolution needs all LR tokens, got indices")
        assert isinstance(lr, Tensor)
        return DiT4SRRun(self, host.x_embedder(lr) + host.positions.to(lr), host)


class DiT4SRRun:
    """One forward pass of DiT4SR: holds the LR tokens between blocks (a `Guest` of the MMDiT)."""

    def __init__(self, control: DiT4SR, lr: Tensor, host: Host):
        self.control, self.host = control, host
        self.state: tuple[Tensor, ...] = (lr,)

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Compute block `index` from the host's modules; `block`, the same without LR tokens, is not called."""
        own, base = self.control.blocks[index], self.host.blocks[index]
        img, lr, txt = own(base, img, self.state[0], txt, vec, self.host, self.control.params)
        self.state = (lr,)
        return img, txt


def split_heads(x: Tensor) -> Tensor:
    """Turn [B, L, H * d] into [B, H, L, d]."""
    return rearrange(x, "b l (h d) -> b h l d", d=HEAD_DIM)
