"""HPA, ConsisSR's hybrid prompt adapter, for SD3: the noisy tokens also read from the tokens of a vision tower.

SD3 has no cross-attention that an image prompt could join, so each block gets a decoupled one before it, on the noisy
tokens: img + scale * to_out_ip(Attn(q, k_ip, v_ip)). All its weights are its own; the base is never touched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .control_init import vec_of_a_clean_picture
from .layers import HEAD_DIM, TORCH, AttentionWeights, Factory, attention, count_blocks, modulate, modulation
from .mmdit import Block, MMDiTParams

MIN_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class ImagePromptParams:
    """Architecture of an image prompt; depth, width and qk norm follow the base.

    Args:
        depth: number of the base's blocks.
        hidden_size: width of the base's tokens.
        image_size: width of the vision tower's tokens (1280 for ViT-H/14).
        qk_norm: root-mean-square normalisation of queries and keys.
    """

    fit_fields = ("depth", "hidden_size", "qk_norm")
    depth: int
    hidden_size: int
    image_size: int
    qk_norm: bool = False

    def __post_init__(self):
        for field in ("depth", "image_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"expected {field} of at least 1, got {getattr(self, field)}")
        if self.hidden_size < HEAD_DIM or self.hidden_size % HEAD_DIM:
            raise ValueError(f"expected hidden_size to be a multiple of {HEAD_DIM}, got {self.hidden_size}")

    @classmethod
    def for_base(cls, base: MMDiTParams, image_size: int) -> "ImagePromptParams":
        """Return the architecture that fits a base and a vision tower of the given token width."""
        return cls(depth=base.depth, hidden_size=base.hidden_size, image_size=image_size, qk_norm=base.qk_norm)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "ImagePromptParams":
        """Infer the architecture from an image prompt's own keys and shapes; raises KeyError where one is missing."""
        hidden_size, image_size = state["projector.1.weight"].shape
        return cls(
            depth=count_blocks(state, "prompt_blocks."),
            hidden_size=hidden_size,
            image_size=image_size,
            qk_norm="prompt_blocks.0.ip_attn.ln_k.weight" in state,
        )


class ImagePromptBlock(nn.Module):
    """The decoupled attention before one block of the base."""

    def __init__(self, params: ImagePromptParams, factory: Factory = TORCH):
        super().__init__()
        size = params.hidden_size
        shared = {"qk_norm": params.qk_norm, "with_output": False, "factory": factory}
        self.img_attn = AttentionWeights(size, parts="q", **shared)
        self.img_mod = modulation(size, 2, factory)
        self.ip_attn = AttentionWeights(size, parts="kv", **shared)
        # The picture is the same at every noise level, so its tokens' shift and scale do not follow the time.
        self.ip_mod_table = nn.Parameter(factory.zeros(2, size))
        self.to_out_ip = factory.linear(size, size)

    def forward(self, img: Tensor, image_tokens: Tensor, vec: Tensor, scale: float) -> Tensor:
        """Add to img [B, N, D] what it reads from image_tokens [B, T, D]."""
        (q,) = self.img_attn.project(modulate(img, *self.img_mod(vec).chunk(2, dim=-1)))
        k, v = self.ip_attn.project(modulate(image_tokens, *self.ip_mod_table.to(image_tokens).unbind(0)))
        return img + scale * self.to_out_ip(attention(q, k, v))


class ImagePrompt(nn.Module):
    """A projector from the vision tower's tokens to the base's width, and one attention per block of the base."""

    def __init__(self, params: ImagePromptParams, factory: Factory = TORCH):
        """Build the module."""
        super().__init__()
        self.params = params
        size = params.hidden_size
        self.projector = nn.Sequential(
            # Without scale and shift of its own: the linear layer after it holds them.
            nn.LayerNorm(params.image_size, elementwise_affine=False),
            factory.linear(params.image_size, size),
            nn.GELU(),
            factory.linear(size, size),
            nn.GELU(),
            factory.linear(size, size),
        )
        self.prompt_blocks = nn.ModuleList(ImagePromptBlock(params, factory) for _ in range(params.depth))

    @property
    def blocks(self) -> list[ImagePromptBlock]:
        """The attentions in the order of the base's blocks."""
        return cast(list[ImagePromptBlock], list(self.prompt_blocks))

    def embed(self, tokens: Tensor) -> Tensor:
        """Project the vision tower's tokens (ConsisSR's HPA).

        Args:
            tokens: [B, T, image_size], the class token and all patch tokens.

        Returns:
            Image tokens [B, T, D] for `run`.

        Raises:
            ValueError: another width, or a single token: with one key every noisy token would read the same.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.params.image_size:
            raise ValueError(
                f"expected image tokens [B, T, {self.params.image_size}], got {list(tokens.shape)}; "
                "use the vision tower that the image prompt was trained with"
            )
        if tokens.shape[1] < MIN_TOKENS:
            raise ValueError(
                f"expected at least {MIN_TOKENS} image tokens per picture, got {tokens.shape[1]}; "
                "pass the vision tower's patch tokens, not its pooled embedding"
            )
        return self.projector(tokens)

    def run(self, image_tokens: Tensor, scale: float = 1.0) -> "ImagePromptRun":
        """Start one forward pass as a guest of the base, from `embed`'s tokens."""
        return ImagePromptRun(self, image_tokens, scale)


class ImagePromptRun:
    """One forward pass of an image prompt (a `Guest` of the MMDiT); it carries nothing from block to block."""

    def __init__(self, prompt: ImagePrompt, image_tokens: Tensor, scale: float):
        self.blocks, self.image_tokens, self.scale = prompt.blocks, image_tokens, scale
        self.state: tuple[Tensor, ...] = ()

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Run block `index` of the base on tokens that have read from the image tokens."""
        return block(self.blocks[index](img, self.image_tokens, vec, self.scale), txt, vec)


@torch.no_grad()
def init_image_prompt(prompt: ImagePrompt, base_state: Mapping[str, Tensor]) -> None:
    """Set every weight of an image prompt from the base's state dict (SD3 keys).

    Queries and their modulation are copies of the base's noisy-token side, keys, values and their modulation copies of
    its text side, whose place the image tokens take. `to_out_ip` alone is zero, so the model starts as the base itself
    and everything else gets a gradient from the second step on; the projector starts random.

    Args:
        prompt: the module to initialise, of the base's depth and width.
        base_state: the base's state dict.

    Raises:
        ValueError: a base of another depth or width.
    """
    depth = count_blocks(base_state, "joint_blocks.")
    width = base_state["x_embedder.proj.weight"].shape[0]
    if (depth, width) != (prompt.params.depth, prompt.params.hidden_size):
        raise ValueError(
            f"expected a base of {prompt.params.depth} blocks and width {prompt.params.hidden_size} like the image "
            f"prompt, got {depth} blocks and width {width}"
        )
    for layer in prompt.projector:
        if hasattr(layer, "bias") and isinstance(layer.weight, Tensor):
            nn.init.normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)
            nn.init.zeros_(cast(Tensor, layer.bias))
    source = {key: value.float() for key, value in base_state.items()}
    vec = vec_of_a_clean_picture(source)
    for index, block in enumerate(prompt.blocks):
        _init_block(block, source, f"joint_blocks.{index}.", vec)


def _init_block(block: ImagePromptBlock, base: Mapping[str, Tensor], prefix: str, vec: Tensor) -> None:
    size = block.ip_mod_table.shape[1]
    new = {}
    for kind in ("weight", "bias"):
        img_qkv, txt_qkv = (base[f"{prefix}{side}_block.attn.qkv.{kind}"] for side in ("x", "context"))
        new[f"img_attn.q.{kind}"] = img_qkv[:size]
        new[f"ip_attn.kv.{kind}"] = txt_qkv[size:]
        new[f"img_mod.1.{kind}"] = base[f"{prefix}x_block.adaLN_modulation.1.{kind}"][: 2 * size]
        new[f"to_out_ip.{kind}"] = torch.zeros_like(img_qkv[:size])
    for ours, theirs in (("img_attn.ln_q", "x_block.attn.ln_q"), ("ip_attn.ln_k", "context_block.attn.ln_k")):
        if f"{prefix}{theirs}.weight" in base:
            new[f"{ours}.weight"] = base[f"{prefix}{theirs}.weight"]
    weight, bias = (base[f"{prefix}context_block.adaLN_modulation.1.{kind}"] for kind in ("weight", "bias"))
    new["ip_mod_table"] = F.linear(F.silu(vec), weight[: 2 * size], bias[: 2 * size]).reshape(2, size)
    block.load_state_dict(new)
