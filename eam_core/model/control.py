"""SSCM, the separable stream control module of EAM (section 3.1): LR tokens steer a frozen MMDiT before each block.

Noisy tokens and LR tokens have query, key and value weights of their own. What the noisy tokens read goes through a
linear layer (zero at first) onto the input of the frozen block; the LR tokens run on in a residual stream of their own.

Three ways to attend (`lr_attention`):

- `joint`: noisy and LR tokens in one attention, as the paper describes.
- `self`: LR tokens see only LR tokens and their modulation knows no time, so keys and values of all blocks can be
  computed once per picture (`ControlStream.remember`) and serve every step and both guidance halves.
- `cross`: as `self`, and the noisy tokens read from the LR tokens only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from .layers import (
    HEAD_DIM,
    TORCH,
    AttentionWeights,
    Factory,
    FeedForward,
    PatchEmbed,
    attention,
    count_blocks,
    gated,
    modulate,
    modulation,
)
from .mmdit import FIT_FIELDS, Block, Host

LRAttention = Literal["joint", "self", "cross"]


@dataclass(frozen=True, kw_only=True)
class ControlParams:
    """Architecture of a control stream; depth, width and qk norm follow the base it controls."""

    fit_fields, settings, preset, notes = FIT_FIELDS, (), "sd3", ()
    depth: int
    hidden_size: int
    in_channels: int = 16
    patch_size: int = 2
    qk_norm: bool = False
    lr_attention: LRAttention = "joint"

    def __post_init__(self):
        if self.lr_attention not in get_args(LRAttention):
            raise ValueError(f"expected lr_attention to be one of {get_args(LRAttention)}, got {self.lr_attention!r}")
        if self.hidden_size < HEAD_DIM or self.hidden_size % HEAD_DIM:
            raise ValueError(f"expected hidden_size to be a multiple of {HEAD_DIM}, got {self.hidden_size}")

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "ControlParams":
        """Read every size from the keys and shapes of a state dict."""
        hidden_size, in_channels, patch_size, _ = state["lr_embedder.proj.weight"].shape
        lr_attention: LRAttention = "joint"
        if "control_blocks.0.lr_mod_table" in state:
            lr_attention = "cross" if "control_blocks.0.img_attn.q.weight" in state else "self"
        return cls(
            depth=count_blocks(state, "control_blocks."),
            hidden_size=hidden_size,
            in_channels=in_channels,
            patch_size=patch_size,
            qk_norm="control_blocks.0.lr_attn.ln_k.weight" in state,
            lr_attention=lr_attention,
        )


class LRMemory(NamedTuple):
    """Keys and values of the LR tokens in one block, each [B, heads, K, 64]."""

    k: Tensor
    v: Tensor


class ControlBlock(nn.Module):
    """One SSCM: what runs before one block of the base."""

    def __init__(self, params: ControlParams, index: int, factory: Factory = TORCH):
        super().__init__()
        size, last = params.hidden_size, index == params.depth - 1
        self.lr_attention = params.lr_attention
        self.num_lr_chunks = 2 if last else 6
        # In the last block nobody reads the LR tokens' output: they only offer keys and values.
        self.img_attn = AttentionWeights(
            size,
            parts="q" if params.lr_attention == "cross" else "qkv",
            qk_norm=params.qk_norm,
            with_output=False,
            factory=factory,
        )
        self.img_mod = modulation(size, 2, factory)
        self.img_out = factory.linear(size, size)
        self.lr_attn = AttentionWeights(
            size, parts="kv" if last else "qkv", qk_norm=params.qk_norm, with_output=not last, factory=factory
        )
        if params.lr_attention == "joint":
            self.lr_mod = modulation(size, self.num_lr_chunks, factory)
        else:
            self.lr_mod_table = nn.Parameter(factory.zeros(self.num_lr_chunks, size))
        if not last:
            self.lr_mlp = FeedForward(size, factory)

    def lr_chunks(self, vec: Tensor | None, like: Tensor) -> tuple[Tensor, ...]:
        """Return the LR stream's modulation vectors, from `vec` [B, D] or from the learned table."""
        if self.lr_attention == "joint":
            assert vec is not None
            return self.lr_mod(vec).chunk(self.num_lr_chunks, dim=-1)
        return self.lr_mod_table.to(like).unbind(0)

    def finish_lr(self, lr: Tensor, attended: Tensor, chunks: tuple[Tensor, ...]) -> Tensor:
        """Carry the LR tokens [B, K, D] on to the next block."""
        gate_attn, shift, scale, gate_mlp = chunks[2:6]
        lr = gated(lr, gate_attn, self.lr_attn.proj(attended))
        return gated(lr, gate_mlp, self.lr_mlp(modulate(lr, shift, scale)))

    def remember(self, lr: Tensor) -> tuple[LRMemory, Tensor]:
        """Return this block's LR keys and values and the LR tokens for the next block (`self` and `cross` only)."""
        chunks = self.lr_chunks(None, lr)
        *query, k, v = self.lr_attn.project(modulate(lr, chunks[0], chunks[1]))
        if query:
            lr = self.finish_lr(lr, attention(query[0], k, v), chunks)
        return LRMemory(k, v), lr

    def read(self, img: Tensor, vec: Tensor, memory: LRMemory, control_scale: float) -> Tensor:
        """Add to img [B, N, D] what it reads from remembered LR keys and values (`self` and `cross` only)."""
        shift, scale = self.img_mod(vec).chunk(2, dim=-1)
        q, *own = self.img_attn.project(modulate(img, shift, scale))
        k, v = memory
        if own:
            k, v = torch.cat([own[0], k], dim=2), torch.cat([own[1], v], dim=2)
        return img + control_scale * self.img_out(attention(q, k, v))

    def forward(self, img: Tensor, lr: Tensor, vec: Tensor, control_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Let img [B, N, D] and lr [B, K, D] exchange; return both as the next stages take them."""
        if self.lr_attention != "joint":
            memory, lr = self.remember(lr)
            return self.read(img, vec, memory, control_scale), lr
        shift, scale = self.img_mod(vec).chunk(2, dim=-1)
        chunks = self.lr_chunks(vec, lr)
        img_q, img_k, img_v = self.img_attn.project(modulate(img, shift, scale))
        *lr_q, lr_k, lr_v = self.lr_attn.project(modulate(lr, chunks[0], chunks[1]))
        num_img = img.shape[1]
        attended = attention(
            torch.cat([img_q, *lr_q], dim=2), torch.cat([img_k, lr_k], dim=2), torch.cat([img_v, lr_v], dim=2)
        )
        img = img + control_scale * self.img_out(attended[:, :num_img])
        if lr_q:
            lr = self.finish_lr(lr, attended[:, num_img:], chunks)
        return img, lr


class ControlStream(nn.Module):
    """The trained half of Psi-DiT: an LR patch embedding and one SSCM per block of the base."""

    replaces_block, has_strength = False, True

    def __init__(self, params: ControlParams, factory: Factory = TORCH):
        """Build the stream."""
        super().__init__()
        self.params = params
        self.lr_embedder = PatchEmbed(params.patch_size, params.in_channels, params.hidden_size, factory)
        self.control_blocks = nn.ModuleList(ControlBlock(params, i, factory) for i in range(params.depth))

    @property
    def blocks(self) -> list[ControlBlock]:
        """The SSCMs in the order of the base's blocks."""
        return cast(list[ControlBlock], list(self.control_blocks))

    @property
    def can_remember(self) -> bool:
        """Whether the LR state is the same at every step, so that `remember` may be used."""
        return self.params.lr_attention != "joint"

    def embed(self, lr_latents: Tensor, positions: Tensor, keep: Tensor | None = None) -> Tensor:
        """Turn LR latents into LR tokens with the base's position embedding.

        Args:
            lr_latents: [B, C, H, W], scaled as the network takes latents.
            positions: [1, L, D], the base's positions for this size.
            keep: indices [B, K] of the tokens that stay in the sequence; all when None.

        Returns:
            LR tokens [B, K, D].
        """
        tokens = self.lr_embedder(lr_latents) + positions.to(lr_latents)
        return tokens if keep is None else tokens.take_along_dim(keep[..., None], dim=1)

    def remember(self, lr_latents: Tensor, host: Host) -> list[LRMemory]:
        """Run the LR stream alone and keep each block's keys and values.

        Raises:
            ValueError: the stream is `joint`, whose LR tokens depend on the noisy ones.
        """
        if not self.can_remember:
            raise ValueError("expected lr_attention 'self' or 'cross', got 'joint'; its LR state changes at every step")
        memories, lr_tokens = [], self.embed(lr_latents, host.positions)
        for block in self.blocks:
            memory, lr_tokens = block.remember(lr_tokens)
            # As views they would keep the queries' memory too, and be read with gaps in every step.
            memories.append(LRMemory(memory.k.contiguous(), memory.v.contiguous()))
        return memories

    def start(
        self, lr: Tensor | list[LRMemory], host: Host, *, control_scale: float = 1.0, keep: Tensor | None = None
    ) -> "ControlRun":
        """Start one forward pass, see `ControlFamily.start`."""
        return self.run(self.embed(lr, host.positions, keep) if isinstance(lr, Tensor) else lr, control_scale)

    def run(self, lr: Tensor | list[LRMemory], control_scale: float = 1.0) -> "ControlRun":
        """Start one forward pass as a guest of the base, from `embed`'s tokens or `remember`'s memory."""
        return ControlRun(self, lr, control_scale)


class ControlRun:
    """One forward pass of a control stream: holds the LR state between blocks (a `Guest` of the MMDiT)."""

    def __init__(self, control: ControlStream, lr: Tensor | list[LRMemory], control_scale: float):
        self.blocks, self.control_scale = control.blocks, control_scale
        self.memories = lr if isinstance(lr, list) else None
        self.state: tuple[Tensor, ...] = (lr,) if isinstance(lr, Tensor) else ()

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Run block `index` of the base on tokens that have read from the LR stream."""
        if self.memories is not None:
            img = self.blocks[index].read(img, vec, self.memories[index], self.control_scale)
        else:
            img, lr = self.blocks[index](img, self.state[0], vec, self.control_scale)
            self.state = (lr,)
        return block(img, txt, vec)
