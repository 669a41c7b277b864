"""A head start for a control with little training: one attention head that reads the LR token at its own place.

A noisy token must find the LR token that lies under it before it can copy anything, and learning that from a base's
copied weights takes most of a short run. Here one head of every SSCM starts with queries and keys that compare
positions only, and with values that undo the LR patch embedding. Everything stays trainable, and the layer that adds to
the base stays zero, so the model still starts as the base itself. This is this project's own addition, not the paper's.
"""

import torch
from torch import Tensor

from eam_core.model.control import ControlStream
from eam_core.model.layers import HEAD_DIM
from eam_core.model.mmdit import Block, MMDiT

SHARPNESS = 4.0  # how much less (in logits) a direct neighbour counts than the token itself


class _TokenScale:
    """A guest of the base that measures the spread of its tokens before each block."""

    def __init__(self):
        self.std: list[float] = []

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        self.std.append(img.std(dim=-1).mean().item())
        return block(img, txt, vec)


def position_channels(hidden_size: int) -> Tensor:
    """Return the HEAD_DIM channels of the sin-cos table with the highest frequencies, 16 for each of its quarters."""
    quarter = hidden_size // 4
    return torch.cat([torch.arange(HEAD_DIM // 4) + start * quarter for start in range(4)])


@torch.no_grad()
def add_local_head(control: ControlStream, base: MMDiT, context: Tensor, pooled: Tensor, *, head: int = 0) -> None:
    """Overwrite one head of every SSCM of a `joint` control.

    Args:
        control: initialised control stream.
        base: its base, whose token sizes set the gain.
        context, pooled: text of one sample, as the base takes it.
        head: which head.

    Raises:
        ValueError: the control is not `joint`.
    """
    if control.params.lr_attention != "joint":
        raise ValueError(
            f"expected a joint control, got {control.params.lr_attention!r}; train it without a local head"
        )
    size = control.params.hidden_size
    scale = _TokenScale()
    noise = torch.randn(1, control.params.in_channels, 32, 32, generator=torch.Generator().manual_seed(0))
    base(noise, torch.tensor([500.0]), context[:1], pooled[:1], guest=scale)
    frequencies = 10_000 ** (-torch.arange(HEAD_DIM // 4) / (size // 4))
    neighbour = (1 - frequencies.cos()).sum().item() / HEAD_DIM**0.5
    compare = torch.zeros(HEAD_DIM, size)
    compare[torch.arange(HEAD_DIM), position_channels(size)] = (SHARPNESS / neighbour) ** 0.5
    unembed = torch.linalg.pinv(control.lr_embedder.proj.weight.flatten(1))  # type: ignore[operator]
    rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    for block, std in zip(control.blocks, scale.std):
        query, key, _ = (part[rows] for part in block.img_attn.qkv.weight.chunk(3))  # type: ignore[union-attr]
        lr_key, lr_value = (
            part[rows]
            for part in block.lr_attn.get_submodule(block.lr_attn.parts).weight.chunk(  # type: ignore[union-attr]
                len(block.lr_attn.parts)
            )[-2:]
        )
        query.copy_(compare * std)
        lr_key.copy_(compare * std)
        key.zero_()  # the noisy tokens' own keys never match: this head reads LR tokens only
        lr_value.copy_(unembed)
