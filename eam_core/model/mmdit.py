"""The SD3 multimodal diffusion transformer (MMDiT) in SD3's own key layout, open to one guest around its blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from .layers import (
    HEAD_DIM,
    TORCH,
    Attention,
    AttentionWeights,
    Factory,
    FeedForward,
    PatchEmbed,
    VectorEmbed,
    attention,
    gated,
    modulate,
    modulation,
    timestep_embedding,
)

FIT_FIELDS = ("depth", "hidden_size", "in_channels", "patch_size", "qk_norm")
"""Fields of `MMDiTParams` in which most controls and their base must agree."""

Block = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (img, txt, vec) -> (img, txt)


@dataclass(frozen=True, kw_only=True, eq=False)
class Host:
    """A base at the start of one forward pass, as far as a guest may use it; its layers have SD3's key names.

    Attributes:
        grid: rows and columns of image tokens.
        positions: the base's position embedding of these tokens [1, rows * columns, D].
        x_embedder: its patch embedding, latents [B, C, H, W] to tokens.
        blocks: its joint blocks, whose modules have SD3's names.
        attend: its attention.
    """

    grid: tuple[int, int]
    positions: Tensor
    x_embedder: Callable[[Tensor], Tensor]
    blocks: Sequence[Any]
    attend: Attention = attention


class Guest(Protocol):
    """One forward pass of a control family: it stands around each block and decides what the block sees and returns.

    `state` is what it carries from block to block; it can be set, so that a block can be computed again.
    """

    @property
    def state(self) -> tuple[Tensor, ...]:
        """What is carried to the next block."""
        ...

    @state.setter
    def state(self, value: tuple[Tensor, ...]) -> None: ...

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Run block `index` on img [B, N, D], txt [B, T, D] and vec [B, D]; call `block` as the host would."""
        ...


class GuestChain:
    """Several guests as one: the first stands nearest to the block."""

    def __init__(self, guests: Sequence[Guest]):
        self.guests = guests

    @property
    def state(self) -> tuple[Tensor, ...]:
        """The guests' states one after another."""
        return tuple(part for guest in self.guests for part in guest.state)

    @state.setter
    def state(self, value: tuple[Tensor, ...]) -> None:
        for guest in self.guests:
            size = len(guest.state)
            guest.state, value = value[:size], value[size:]

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Run block `index` with every guest around it."""
        for guest in self.guests:
            block = partial(_around, guest, index, block)
        return block(img, txt, vec)


def _around(guest: Guest, index: int, block: Block, img: Tensor, txt: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
    return guest.run_block(index, img, txt, vec, block)


@dataclass(frozen=True, kw_only=True)
class MMDiTParams:
    """Architecture of an SD3-family transformer.

    Args:
        depth: number of joint blocks.
        hidden_size: token width, a multiple of 64 (heads have 64 channels).
        context_size: width of a text token as it comes from the text encoders.
        pooled_size: width of the pooled text vector.
        pos_embed_max_size: side of the stored position table in tokens.
        qk_norm: root-mean-square normalisation of queries and keys (SD3.5).
        dual_attention_blocks: blocks whose image side has a second self-attention (SD3.5-medium).
    """

    depth: int
    hidden_size: int
    in_channels: int = 16
    patch_size: int = 2
    context_size: int = 4096
    pooled_size: int = 2048
    pos_embed_max_size: int = 192
    qk_norm: bool = False
    dual_attention_blocks: tuple[int, ...] = ()

    def __post_init__(self):
        if self.depth < 1:
            raise ValueError(f"expected depth of at least 1, got {self.depth}")
        if self.hidden_size < HEAD_DIM or self.hidden_size % HEAD_DIM:
            raise ValueError(f"expected hidden_size to be a multiple of {HEAD_DIM}, got {self.hidden_size}")


class StreamBlock(nn.Module):
    """One stream's side of a joint block (SD3 keys); `pre_only` streams only feed the attention."""

    def __init__(
        self,
        params: MMDiTParams,
        *,
        pre_only: bool = False,
        dual_attention: bool = False,
        factory: Factory = TORCH,
    ):
        super().__init__()
        size = params.hidden_size
        self.pre_only, self.dual_attention = pre_only, dual_attention
        self.attn = AttentionWeights(size, qk_norm=params.qk_norm, with_output=not pre_only, factory=factory)
        if dual_attention:
            self.attn2 = AttentionWeights(size, qk_norm=params.qk_norm, factory=factory)
        if not pre_only:
            self.mlp = FeedForward(size, factory)
        self.num_chunks = 2 if pre_only else 9 if dual_attention else 6
        self.adaLN_modulation = modulation(size, self.num_chunks, factory)

    def modulation_chunks(self, vec: Tensor) -> tuple[Tensor, ...]:
        """Return shift, scale (, gate, shift, scale, gate (, shift, scale, gate of attn2)), each [B, D]."""
        return self.adaLN_modulation(vec).chunk(self.num_chunks, dim=-1)

    def finish(self, x: Tensor, attended: Tensor, chunks: tuple[Tensor, ...]) -> Tensor:
        """Apply output projection(s) and feed-forward to the residual stream x [B, L, D]."""
        gate_attn, shift_mlp, scale_mlp, gate_mlp = chunks[2:6]
        update = gated(x, gate_attn, self.attn.proj(attended))
        if self.dual_attention:
            shift, scale, gate = chunks[6:9]
            q, k, v = self.attn2.project(modulate(x, shift, scale))
            update = gated(update, gate, self.attn2.proj(attention(q, k, v)))
        return gated(update, gate_mlp, self.mlp(modulate(update, shift_mlp, scale_mlp)))


class JointBlock(nn.Module):
    """Text and image streams with their own weights, meeting in one attention (SD3 section 4)."""

    def __init__(self, params: MMDiTParams, index: int, factory: Factory = TORCH):
        super().__init__()
        self.context_block = StreamBlock(params, pre_only=index == params.depth - 1, factory=factory)
        self.x_block = StreamBlock(params, dual_attention=index in params.dual_attention_blocks, factory=factory)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        """Return img [B, N, D] and txt [B, T, D] after the block; a pre-only text side passes through unchanged."""
        txt_chunks = self.context_block.modulation_chunks(vec)
        img_chunks = self.x_block.modulation_chunks(vec)
        txt_qkv = self.context_block.attn.project(modulate(txt, txt_chunks[0], txt_chunks[1]))
        img_qkv = self.x_block.attn.project(modulate(img, img_chunks[0], img_chunks[1]))
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(txt_qkv, img_qkv))
        attended = attention(q, k, v)
        num_txt = txt.shape[1]
        if not self.context_block.pre_only:
            txt = self.context_block.finish(txt, attended[:, :num_txt], txt_chunks)
        return self.x_block.finish(img, attended[:, num_txt:], img_chunks), txt


class FinalLayer(nn.Module):
    """Modulate the image tokens once more and project each to its patch."""

    def __init__(self, params: MMDiTParams, factory: Factory = TORCH):
        super().__init__()
        out_size = params.patch_size**2 * params.in_channels
        self.linear = factory.linear(params.hidden_size, out_size)
        self.adaLN_modulation = modulation(params.hidden_size, 2, factory)

    def forward(self, img: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec).chunk(2, dim=-1)
        return self.linear(modulate(img, shift, scale))


class MMDiT(nn.Module):
    """SD3's velocity network for latents of any height and width that its position table covers."""

    pos_embed: Tensor

    def __init__(self, params: MMDiTParams, factory: Factory = TORCH):
        """Build the network."""
        super().__init__()
        self.params = params
        size = params.hidden_size
        self.x_embedder = PatchEmbed(params.patch_size, params.in_channels, size, factory)
        self.t_embedder = VectorEmbed(256, size, factory)
        self.y_embedder = VectorEmbed(params.pooled_size, size, factory)
        self.context_embedder = factory.linear(params.context_size, size)
        self.register_buffer("pos_embed", factory.zeros(1, params.pos_embed_max_size**2, size))
        self.joint_blocks = nn.ModuleList(JointBlock(params, i, factory) for i in range(params.depth))
        self.final_layer = FinalLayer(params, factory)

    def positions(self, height: int, width: int, *, offset: tuple[int, int] | None = None) -> Tensor:
        """Crop the position table for latents of the given size.

        Args:
            height, width: latent size in latent pixels.
            offset: top-left token of the crop; the middle of the table when None, as SD3 does.

        Returns:
            [1, tokens, hidden_size].

        Raises:
            ValueError: the table is smaller than the latents.
        """
        patch, side = self.params.patch_size, self.params.pos_embed_max_size
        rows, columns = -(-height // patch), -(-width // patch)
        if rows > side or columns > side:
            limit = side * patch
            raise ValueError(f"expected latents of at most {limit} x {limit}, got {height} x {width}; use tiles")
        top, left = offset if offset is not None else ((side - rows) // 2, (side - columns) // 2)
        table = self.pos_embed.unflatten(1, (side, side))
        return table[:, top : top + rows, left : left + columns].flatten(1, 2)

    def host(self, height: int, width: int, *, positions: Tensor | None = None) -> Host:
        """Offer this network to a guest for latents of the given size; the centred crop of positions when None."""
        patch = self.params.patch_size
        return Host(
            grid=(-(-height // patch), -(-width // patch)),
            positions=self.positions(height, width) if positions is None else positions,
            x_embedder=self.x_embedder,
            blocks=list(self.joint_blocks),
        )

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        pooled: Tensor,
        *,
        guest: Guest | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity of the rectified flow (SD3 section 2).

        Args:
            latents: noisy latents [B, C, H, W].
            timestep: 1000 * sigma, [B].
            context: text tokens [B, T, context_size].
            pooled: pooled text vectors [B, pooled_size].
            guest: a control run that stands around each block; None for the plain base.
            positions: position embedding [1, tokens, D]; the centred crop when None.

        Returns:
            Velocity [B, C, H, W].
        """
        height, width = latents.shape[-2:]
        if positions is None:
            positions = self.positions(height, width)
        img = self.x_embedder(latents) + positions.to(latents)
        vec = self.t_embedder(timestep_embedding(timestep).to(latents.dtype)) + self.y_embedder(pooled)
        txt = self.context_embedder(context)
        for index, block in enumerate(self.joint_blocks):
            img, txt = guest.run_block(index, img, txt, vec, block) if guest else block(img, txt, vec)
        patch = self.params.patch_size
        return rearrange(
            self.final_layer(img, vec),
            "b (h w) (p q c) -> b c (h p) (w q)",
            h=-(-height // patch),
            p=patch,
            q=patch,
        )[..., :height, :width]
