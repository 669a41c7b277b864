"""TSD-SR: one step of SD3-medium under a LoRA of its weights and of its autoencoder's encoder (arXiv 2411.18263).

A control family that adds nothing around the blocks: what it trained lies in changes of weights that belong to others
(`eam_core.lora`), and in where sampling starts (`presets.TSDSR`). Its files are recognised here, by their keys.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .layers import count_blocks
from .mmdit import FIT_FIELDS, Block

LORA_PREFIX, DOWN, UP = "transformer.", ".lora_A.weight", ".lora_B.weight"
_OUTSIDE = ("pos_embed.proj", "norm_out.linear", "proj_out")
MARKS = {
    f"{LORA_PREFIX}{module}{DOWN}" for module in (*_OUTSIDE, "transformer_blocks.0.attn.to_q")
}  # keys of the student's transformer.safetensors; the teacher's are the same
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
_REST = ("norm1.linear", "norm1_context.linear", "ff.net.0.proj", "ff_context.net.0.proj")


@dataclass(frozen=True, kw_only=True)
class TSDSRParams:
    """Sizes of the transformer that a LoRA was trained on; depth and widths come from its shapes."""

    fit_fields, settings, preset = FIT_FIELDS, (), "tsdsr"
    notes = (
        "TSD-SR's repository is under the Apache License 2.0; the base keeps its own licence "
        "(SD3-medium: Stability AI Community License)",
    )
    depth: int
    hidden_size: int
    in_channels: int = 16
    patch_size: int = 2
    qk_norm: bool = False

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "TSDSRParams":
        """Read every size from the keys and shapes of transformer.safetensors."""
        _, in_channels, patch_size, _ = state[f"{LORA_PREFIX}pos_embed.proj{DOWN}"].shape
        return cls(
            depth=count_blocks(state, f"{LORA_PREFIX}transformer_blocks."),
            hidden_size=state[f"{LORA_PREFIX}transformer_blocks.0.attn.to_q{DOWN}"].shape[1],
            in_channels=in_channels,
            patch_size=patch_size,
        )


def lora_modules(keys: Iterable[str]) -> set[str]:
    """Return the modules that a LoRA file changes, by diffusers' names; empty where the keys are not such a file's."""
    return {
        key.removeprefix(LORA_PREFIX).removesuffix(end)
        for key in keys
        for end in (DOWN, UP)
        if key.startswith(LORA_PREFIX) and key.endswith(end)
    }


def student_modules(depth: int) -> set[str]:
    """Return the modules that transformer.safetensors changes in a base of `depth` blocks: 266 in SD3-medium."""
    modules: set[str] = {*_OUTSIDE}
    for index in range(depth):
        inner = [f"attn.{name}" for name in _ATTENTION] + list(_REST)
        modules |= {f"transformer_blocks.{index}.{name}" for name in inner}
    return modules - {f"transformer_blocks.{depth - 1}.ff_context.net.0.proj"}  # the last text side has no feed-forward


def describe_lora(keys: Iterable[str]) -> str | None:
    """Name the other files of TSD-SR in words; None for anything else."""
    modules = lora_modules(keys)
    if modules and all(module.startswith("encoder.") for module in modules):
        return "TSD-SR's LoRA of the autoencoder (its transformer.safetensors is the file to choose)"
    if modules and all(module.rpartition(".attn.")[2] in _ATTENTION for module in modules):
        return "a LoRA of attention alone, such as the auxiliary one (transformer_reg.safetensors) of TSD-SR's training"
    return None


class TSDSR(nn.Module):
    """The family's place among the others: fits its base, has no weights of its own and changes no block."""

    replaces_block, has_strength, can_remember = False, False, True

    def __init__(self, params: TSDSRParams):
        super().__init__()
        self.params = params

    def remember(self, lr_latents: Tensor, host: Any) -> list[Any]:
        """Return nothing: the LR latents are what sampling starts from."""
        return []

    def start(self, lr: Any, host: Any, *, control_scale: float = 1.0, keep: Tensor | None = None) -> "UnchangedBlocks":
        """Start one forward pass."""
        return UnchangedBlocks()


class UnchangedBlocks:
    """A forward pass that leaves every block as it is (a `Guest` of the MMDiT)."""

    def __init__(self) -> None:
        self.state: tuple[Tensor, ...] = ()

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Run the block."""
        return block(img, txt, vec)
