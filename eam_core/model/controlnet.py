"""DiT-ControlNet: copies of the base's first blocks read the noisy tokens plus the LR tokens and add to its stream.

The ablation's other arm (EAM Table 2) and a control of its own. Which block receives which copy's output is as in the
public SD3 ControlNets, so are the two zero-initialised places: the LR patch embedding and a linear layer per copy.
Unlike theirs, time, pooled text and text tokens are the base's own and are not embedded a second time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .control import LRMemory
from .layers import TORCH, Factory, PatchEmbed, count_blocks
from .mmdit import FIT_FIELDS, Block, Host, JointBlock, MMDiTParams


@dataclass(frozen=True, kw_only=True)
class ControlNetParams:
    """Architecture of a ControlNet; all but `num_blocks` follows the base it controls.

    Args:
        depth: number of blocks of the base.
        num_blocks: number of copied blocks, at most `depth`.
        dual_attention_blocks: copies whose image side has a second self-attention, as the base's block has.
    """

    fit_fields, settings, preset, notes = FIT_FIELDS, (), "sd3", ()
    depth: int
    hidden_size: int
    num_blocks: int
    in_channels: int = 16
    patch_size: int = 2
    qk_norm: bool = False
    dual_attention_blocks: tuple[int, ...] = ()

    def __post_init__(self):
        if not 1 <= self.num_blocks <= self.depth:
            raise ValueError(f"expected num_blocks from 1 to the base's {self.depth} blocks, got {self.num_blocks}")
        if any(not 0 <= index < self.num_blocks for index in self.dual_attention_blocks):
            raise ValueError(
                f"expected dual_attention_blocks below {self.num_blocks}, got {self.dual_attention_blocks}"
            )
        _ = self.copies  # refuses a bad width

    @classmethod
    def for_base(cls, base: MMDiTParams, num_blocks: int) -> "ControlNetParams":
        """Return the architecture of a ControlNet that copies the first `num_blocks` blocks of a base."""
        return cls(
            depth=base.depth,
            hidden_size=base.hidden_size,
            num_blocks=num_blocks,
            in_channels=base.in_channels,
            patch_size=base.patch_size,
            qk_norm=base.qk_norm,
            dual_attention_blocks=tuple(index for index in base.dual_attention_blocks if index < num_blocks),
        )

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "ControlNetParams":
        """Read every size from the keys and shapes of a state dict."""
        hidden_size, in_channels, patch_size, _ = state["lr_embedder.proj.weight"].shape
        num_blocks = count_blocks(state, "controlnet_blocks.")
        return cls(
            depth=state["block_scales"].shape[0],
            hidden_size=hidden_size,
            num_blocks=num_blocks,
            in_channels=in_channels,
            patch_size=patch_size,
            qk_norm="controlnet_blocks.0.x_block.attn.ln_q.weight" in state,
            dual_attention_blocks=tuple(
                index for index in range(num_blocks) if f"controlnet_blocks.{index}.x_block.attn2.qkv.weight" in state
            ),
        )

    @property
    def copies(self) -> MMDiTParams:
        """The copied blocks as a transformer of their own: nobody reads the last one's text, so it is pre-only."""
        return MMDiTParams(
            depth=self.num_blocks,
            hidden_size=self.hidden_size,
            in_channels=self.in_channels,
            patch_size=self.patch_size,
            qk_norm=self.qk_norm,
            dual_attention_blocks=self.dual_attention_blocks,
        )

    def copy_for(self, index: int) -> int:
        """Return the copy whose output the base's block `index` receives."""
        return index * self.num_blocks // self.depth


class ControlNet(nn.Module):
    """The trained half: LR patch embedding, copied blocks, and a linear layer for each copy's output."""

    block_scales: Tensor
    replaces_block, has_strength = False, True

    def __init__(self, params: ControlNetParams, factory: Factory = TORCH):
        """Build the network."""
        super().__init__()
        self.params = params
        size, num_blocks = params.hidden_size, params.num_blocks
        self.lr_embedder = PatchEmbed(params.patch_size, params.in_channels, size, factory)
        self.controlnet_blocks = nn.ModuleList(JointBlock(params.copies, i, factory) for i in range(num_blocks))
        self.zero_linears = nn.ModuleList(factory.linear(size, size) for _ in range(num_blocks))
        # Stored, because nothing else in the file tells how many blocks the base has. As in the public ControlNets the
        # last block receives nothing, except where it alone would receive the last copy, which could then never learn.
        scales = factory.zeros(params.depth).fill_(1)
        if params.depth > 1 and params.copy_for(params.depth - 2) == num_blocks - 1:
            scales[-1] = 0
        self.register_buffer("block_scales", scales)

    @property
    def can_remember(self) -> bool:
        """False: the copies read the noisy tokens, so their state changes at every step."""
        return False

    def embed(self, lr_latents: Tensor, positions: Tensor, keep: Tensor | None = None) -> Tensor:
        """Turn LR latents into LR tokens, one for each noisy token, to which it is added.

        Args:
            lr_latents: [B, C, H, W], scaled as the network takes latents.
            positions: the base's positions, which the noisy tokens have already.
            keep: indices [B, K] of the LR tokens that count; the others add nothing. The sequence, and so the cost, is
                that of the noisy tokens in any case. All count when None.

        Returns:
            LR tokens [B, L, D].
        """
        tokens = self.lr_embedder(lr_latents)
        if keep is None:
            return tokens
        kept = tokens.new_zeros(len(keep), tokens.shape[1]).scatter_(1, keep, 1)
        return tokens * kept[..., None]

    def remember(self, lr_latents: Tensor, host: Host) -> list[LRMemory]:
        """Refuse: see `can_remember`."""
        raise ValueError("expected a control whose LR state is the same at every step, got a ControlNet")

    def start(
        self, lr: Tensor | list[LRMemory], host: Host, *, control_scale: float = 1.0, keep: Tensor | None = None
    ) -> "ControlNetRun":
        """Start one forward pass, see `ControlFamily.start`."""
        assert isinstance(lr, Tensor)
        return self.run(self.embed(lr, host.positions, keep), control_scale)

    def run(self, lr: Tensor | list[LRMemory], control_scale: float = 1.0) -> "ControlNetRun":
        """Start one forward pass as a guest of the base, from `embed`'s tokens."""
        assert isinstance(lr, Tensor)
        return ControlNetRun(self, lr, control_scale)


class ControlNetRun:
    """One forward pass of a ControlNet: holds the copies' streams between blocks (a `Guest` of the MMDiT)."""

    def __init__(self, control: ControlNet, lr: Tensor, control_scale: float):
        self.control, self.control_scale = control, control_scale
        # The copies' img and txt, what the last copy adds to the base, and how many have run. The number is a tensor
        # so that it goes back with the rest when a block is computed again; hosts may skip blocks, never copies.
        self.state: tuple[Tensor, ...] = (lr, lr[:, :0], lr[:, :0], _number(0))

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Run block `index` of the base and add what its copy says."""
        control = self.control
        own_img, own_txt, update, num_run = self.state
        copy = control.params.copy_for(index)
        for number in range(int(num_run), copy + 1):
            if number == 0:
                own_img, own_txt = img + own_img, txt
            own_img, own_txt = control.controlnet_blocks[number](own_img, own_txt, vec)
            update = control.zero_linears[number](own_img)
        self.state = (own_img, own_txt, update, _number(copy + 1))
        img, txt = block(img, txt, vec)
        return img + self.control_scale * control.block_scales[index].to(img) * update, txt


def _number(value: int) -> Tensor:
    return torch.tensor(value, device="cpu")  # whatever the default device is: it is read at every block
