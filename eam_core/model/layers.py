"""Building blocks of the SD3 family: patch and time embeddings, attention projections, feed-forward, modulation.

Modules that hold weights take a `Factory`, so that a host such as ComfyUI builds them with its own casting layers.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

HEAD_DIM = 64  # every published SD3 model has heads of 64 channels
NORM_EPS = 1e-6

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attend with queries, keys and values [B, H, L, d] and merge the heads into [B, L, H * d]."""


@dataclass(frozen=True, kw_only=True)
class Factory:
    """How weights are made: `operations` is a namespace with `Linear` and `Conv2d`; None means torch's defaults."""

    operations: Any = nn
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None

    def linear(self, in_size: int, out_size: int) -> nn.Module:
        """Make a linear layer with bias."""
        return self.operations.Linear(in_size, out_size, bias=True, dtype=self.dtype, device=self.device)

    def patch_conv(self, in_channels: int, out_size: int, patch_size: int) -> nn.Module:
        """Make a convolution that reads each patch once."""
        return self.operations.Conv2d(
            in_channels, out_size, kernel_size=patch_size, stride=patch_size, dtype=self.dtype, device=self.device
        )

    def depthwise_conv(self, channels: int) -> nn.Module:
        """Make a 3x3 convolution of each channel alone that keeps the size."""
        return self.operations.Conv2d(
            channels, channels, kernel_size=3, padding=1, groups=channels, dtype=self.dtype, device=self.device
        )

    def zeros(self, *shape: int) -> Tensor:
        """Make a tensor of zeros."""
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)


TORCH = Factory()


def count_blocks(keys: Iterable[str], prefix: str) -> int:
    """Count the numbered modules of a state dict that stand under a prefix such as `joint_blocks.`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)})


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise tokens [B, L, D] without learned affine, then scale and shift them (adaLN; [B, D] or [D] each)."""
    return torch.addcmul(shift.unsqueeze(-2), F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale.unsqueeze(-2))


def gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """Add `update` [B, L, D] to the residual stream through a per-channel gate [B, D] or [D]."""
    return torch.addcmul(x, gate.unsqueeze(-2), update)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with heads apart [B, H, L, d] and merge them into [B, L, H * d]."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)")


def timestep_embedding(timestep: Tensor, dim: int = 256, max_period: float = 10_000.0) -> Tensor:
    """Embed timesteps [B] (1000 * sigma) as [B, dim] cosines and sines (DDPM's transformer embedding)."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * torch.exp(-math.log(max_period) * exponent)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_position_table(hidden_size: int, side: int) -> Tensor:
    """Return the fixed position table [1, side * side, hidden_size] of SD3, one unit per token; rows run first.

    The first half of the channels encodes the column, the second half the row.
    """
    omega = 1.0 / 10_000 ** (torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size / 4.0))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows = line[:, None].expand(side, side, -1)
    columns = line[None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, side * side, hidden_size).float()


class PatchEmbed(nn.Module):
    """Turn latents [B, C, H, W] into one token per patch [B, L, D]; odd sides are padded by wrapping around."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int, factory: Factory = TORCH):
        super().__init__()
        self.patch_size = patch_size
        self.proj = factory.patch_conv(in_channels, hidden_size, patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        pad_h, pad_w = (-latents.shape[-2]) % self.patch_size, (-latents.shape[-1]) % self.patch_size
        if pad_h or pad_w:
            latents = F.pad(latents, (0, pad_w, 0, pad_h), mode="circular")
        # As a view, all tokens after it would keep its order in memory, and every normalisation would copy them.
        return rearrange(self.proj(latents), "b d h w -> b (h w) d").contiguous()


class VectorEmbed(nn.Module):
    """Embed one vector per sample with Linear, SiLU, Linear: [B, in] -> [B, D]."""

    def __init__(self, in_size: int, hidden_size: int, factory: Factory = TORCH):
        super().__init__()
        self.mlp = nn.Sequential(
            factory.linear(in_size, hidden_size), nn.SiLU(), factory.linear(hidden_size, hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class HeadRMSNorm(nn.Module):
    """Root-mean-square normalisation over the channels of each head, with a learned scale (SD3.5's qk norm)."""

    def __init__(self, dim: int, factory: Factory = TORCH):
        super().__init__()
        self.weight = nn.Parameter(factory.zeros(dim) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x), NORM_EPS)


class AttentionWeights(nn.Module):
    """Project tokens to the parts of an attention named by `parts` ("qkv", "kv" or "q"), heads apart.

    The weights stand in one matrix named after the parts, so "qkv" has SD3's key names.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        parts: str = "qkv",
        qk_norm: bool = False,
        with_output: bool = True,
        factory: Factory = TORCH,
    ):
        super().__init__()
        self.parts = parts
        self.add_module(parts, factory.linear(hidden_size, len(parts) * hidden_size))
        for part in "qk":
            if qk_norm and part in parts:
                self.add_module(f"ln_{part}", HeadRMSNorm(HEAD_DIM, factory))
        if with_output:
            self.proj = factory.linear(hidden_size, hidden_size)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each part as [B, heads, L, HEAD_DIM], in the order of `parts`."""
        fused = rearrange(getattr(self, self.parts)(x), "b l (n h d) -> n b h l d", n=len(self.parts), d=HEAD_DIM)
        return tuple(norm(y) if norm else y for norm, y in zip(self._norms(), fused.unbind(0)))

    def _norms(self) -> list[nn.Module | None]:
        return [self._modules.get(f"ln_{part}") for part in self.parts]


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear with four times the width between."""

    def __init__(self, hidden_size: int, factory: Factory = TORCH):
        super().__init__()
        self.fc1 = factory.linear(hidden_size, 4 * hidden_size)
        self.fc2 = factory.linear(4 * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulation(hidden_size: int, num_chunks: int, factory: Factory = TORCH) -> nn.Sequential:
    """Return the adaLN projection: SiLU, then one linear layer to `num_chunks` vectors of the hidden size."""
    return nn.Sequential(nn.SiLU(), factory.linear(hidden_size, num_chunks * hidden_size))
