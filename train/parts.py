"""The networks of a control run, from local files: autoencoder, frozen base, new or continued control, text."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from eam_core.checkpoint import build_autoencoder, build_control, build_image_prompt, build_mmdit, check_pair
from eam_core.diffusers_keys import read_transformer
from eam_core.errors import CheckpointError
from eam_core.loading import spec_of
from eam_core.model.autoencoder import Autoencoder
from eam_core.model.control import ControlParams, ControlStream, LRAttention
from eam_core.model.control_init import LRInit, init_control, init_controlnet
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.model.family import ControlFamily
from eam_core.model.image_prompt import ImagePrompt, ImagePromptParams, init_image_prompt
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.psi_dit import PsiDiT
from eam_core.vision import VisionTower
from eam_core.weight_files import read_weights
from train.local_head import add_local_head
from train.text_cache import TextCache

TrainingText = tuple[Tensor, Tensor]  # context [B, T, context_size] and pooled [B, pooled_size]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """Which networks, and what a new control starts from.

    Args:
        base: SD3 checkpoint (.safetensors), or a diffusers transformer folder; it stays frozen.
        autoencoder: folder of SD3's vae (diffusers), or an EAM autoencoder file.
        start: control weights to go on from; empty for new ones.
        text_cache: folder written by train.cache_text; empty trains without text.
        image_encoder: CLIP vision tower (transformers folder) for the image prompt (ConsisSR's HPA); empty for none.
        family: "psi_dit" (SSCM, the paper's) or "controlnet" (copied blocks with zero linears).
        lr_attention: of psi_dit; "joint" as the paper, "self" and "cross" can be cached over steps.
        lr_init: of psi_dit's LR stream: from the base's "noisy" stream (NLB), its "text" stream (TEB), or "random".
        zero_init: of psi_dit; "on" starts as the base itself, "off" does not (Table 3).
        num_blocks: of controlnet, how many of the base's blocks are copied; 0 for all of them.
        local_heads: of psi_dit; 1 gives every SSCM a head that starts by reading the LR token at its own place, 0 is
            the paper's.
        gradient_checkpointing: "on" computes blocks twice and keeps little of them in memory.
        compile: "on" compiles the network with torch.compile.
    """

    base: str = "runs/base/base.safetensors"
    autoencoder: str = "runs/autoencoder/autoencoder.safetensors"
    start: str = ""
    text_cache: str = ""
    image_encoder: str = ""
    family: Literal["psi_dit", "controlnet"] = "psi_dit"
    lr_attention: LRAttention = "joint"
    lr_init: LRInit = "noisy"
    zero_init: Literal["on", "off"] = "on"
    num_blocks: int = 0
    local_heads: int = 0
    gradient_checkpointing: Literal["on", "off"] = "off"
    compile: Literal["on", "off"] = "off"

    def __post_init__(self):
        if self.local_heads not in (0, 1):
            raise ValueError(f"expected local_heads 0 or 1, got {self.local_heads}")
        if self.local_heads and (self.lr_attention != "joint" or self.family != "psi_dit"):
            raise ValueError("expected local_heads 0 with controlnet or another lr_attention than 'joint', got 1")
        if self.num_blocks < 0:
            raise ValueError(f"expected num_blocks of at least 0, got {self.num_blocks}")


class Text(Protocol):
    """Text embeddings for training, float32 on the CPU."""

    def read(self, captions: list[str]) -> TrainingText:
        """Return the embeddings of captions."""
        ...

    def null(self) -> TrainingText:
        """Return those of no text at all, batch 1."""
        ...


class NoText:
    """Stands in for a text cache: zero tokens whatever the caption, as restoring without text encoders has them."""

    def __init__(self, params: MMDiTParams, num_tokens: int):
        """Take the sizes of the base, and how many zero tokens its family wants."""
        self.sizes = (1, num_tokens, params.context_size), (1, params.pooled_size)

    def null(self) -> TrainingText:
        """Return zero tokens [1, num_tokens, context_size] and a zero vector [1, pooled_size]."""
        return torch.zeros(self.sizes[0]), torch.zeros(self.sizes[1])

    def read(self, captions: list[str]) -> TrainingText:
        """Return the same for each caption."""
        context, pooled = self.null()
        return context.expand(len(captions), -1, -1), pooled.expand(len(captions), -1)


class Parts(NamedTuple):
    """What `load_parts` returns; `model` joins base, control and image prompt."""

    model: PsiDiT
    autoencoder: Autoencoder
    text: Text
    tower: VisionTower | None


def load_parts(config: PartsConfig, *, base_dtype: torch.dtype = torch.float32, seed: int = 0) -> Parts:
    """Load the frozen networks and make or load the trained ones, all on the CPU.

    Args:
        config: files and choices.
        base_dtype: of the frozen base; the trained weights are float32.
        seed: of what starts at random.

    Raises:
        CheckpointError: a file is not what it should be, or they do not belong together.
    """
    base = build_mmdit(read_transformer(config.base), Path(config.base).name, Factory(dtype=base_dtype))
    if config.text_cache:
        text: Text = TextCache(config.text_cache)
    else:
        text = NoText(base.params, spec_of(config.base).num_null_tokens)
    _check_text(text, base, config.text_cache)
    tower = VisionTower(config.image_encoder) if config.image_encoder else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.start:
            control, image_prompt = _continued(config, base)
        else:
            control, image_prompt = _new_control(config, base, text), None
        if tower and image_prompt is None:
            image_prompt = _new_image_prompt(base, tower)
    return Parts(PsiDiT(base, control, image_prompt), _autoencoder(config.autoencoder), text, tower)


def _new_control(config: PartsConfig, base: MMDiT, text: Text) -> ControlFamily:
    names = ("depth", "hidden_size", "in_channels", "patch_size", "qk_norm")
    shared = {name: getattr(base.params, name) for name in names}
    state = base.state_dict()
    if config.family == "controlnet":
        net = ControlNet(ControlNetParams.for_base(base.params, config.num_blocks or base.params.depth))
        init_controlnet(net, state)
        return net
    stream = ControlStream(ControlParams(**shared, lr_attention=config.lr_attention))
    init_control(stream, state, lr_init=config.lr_init, zero_init=config.zero_init == "on")
    if config.local_heads:
        add_local_head(stream, base, *text.null())
    return stream


def _new_image_prompt(base: MMDiT, tower: VisionTower) -> ImagePrompt:
    prompt = ImagePrompt(ImagePromptParams.for_base(base.params, tower.hidden_size))
    init_image_prompt(prompt, base.state_dict())
    return prompt


def _continued(config: PartsConfig, base: MMDiT) -> tuple[ControlFamily, ImagePrompt | None]:
    state, source = read_weights(config.start), Path(config.start).name
    control = build_control(state, source, Factory(dtype=torch.float32))
    check_pair(base.params, control.params, source)
    return control.train(), build_image_prompt(state, source, Factory(dtype=torch.float32))


def _autoencoder(path: str) -> Autoencoder:
    if Path(path).is_dir():
        from eam_core.sd3 import SD3Autoencoder

        return SD3Autoencoder(path)
    return build_autoencoder(read_weights(path), Path(path).name).float().requires_grad_(False)


def _check_text(text: Text, base: MMDiT, source: str) -> None:
    """Refuse embeddings of another width than the base's.

    Raises:
        CheckpointError: they were made by other text encoders.
    """
    got = tuple(part.shape[-1] for part in text.null())
    wanted = (base.params.context_size, base.params.pooled_size)
    if got != wanted:
        raise CheckpointError(
            f"expected text embeddings of {wanted[0]} and {wanted[1]} channels like the base's, but {source} has "
            f"{got[0]} and {got[1]}; make them with the text encoders of the base's family"
        )
