"""What weights hold, told by keys and shapes, and the modules built from them.

Sizes come from the tensors, never from a side file.
"""

import copy
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .errors import CheckpointError
from .model.autoencoder import AutoencoderParams, PatchAutoencoder
from .model.control import ControlParams, ControlStream
from .model.controlnet import ControlNet, ControlNetParams
from .model.dit4sr import MARKS as DIT4SR_MARKS
from .model.dit4sr import DiT4SR, DiT4SRParams, is_control_key
from .model.family import ControlFamily, FamilyParams
from .model.image_prompt import ImagePrompt, ImagePromptParams
from .model.layers import HEAD_DIM, TORCH, Factory, count_blocks
from .model.mmdit import MMDiT, MMDiTParams
from .model.tsdsr import MARKS as TSDSR_MARKS
from .model.tsdsr import TSDSR, TSDSRParams, describe_lora
from .module_weights import fill, load_into
from .size_limits import check_sizes

Kind = Literal["mmdit", "control", "autoencoder"]
ControlT = TypeVar("ControlT", bound=ControlFamily)
ParamsT = TypeVar("ParamsT")

CHECKPOINT_PREFIX = "model.diffusion_model."  # where whole SD3 checkpoints keep the MMDiT
IMAGE_PROMPT_PREFIX = "image_prompt."  # where a control's file keeps the image prompt trained with it
_NAMES = {
    "mmdit": "an SD3-family transformer",
    "control": "EAM control weights",
    "image_prompt": "the weights of an EAM image prompt without its control",
    "autoencoder": "an EAM autoencoder",
}
# Key fragments of other model families, most telling first.
_OTHER_KINDS = (
    ("an SD3 transformer of diffusers without control weights in it", ("transformer_blocks.0.attn.add_q_proj.",)),
    ("a LoRA", (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", "lora_unet_", "lora_te")),
    ("a Flux model", ("double_blocks.", "single_blocks.", "single_transformer_blocks.")),
    ("an SDXL model", ("conditioner.embedders.1.", "add_embedding.linear_1.", "label_emb.0.0.")),
    ("a Stable Diffusion 1 or 2 model", ("cond_stage_model.", "input_blocks.0.0.", "down_blocks.0.")),
    ("text encoder weights", ("text_model.encoder.", "encoder.block.0.layer.")),
    ("autoencoder weights of another family", ("decoder.up.", "decoder.mid.", "taesd_decoder.", "decoder.up_blocks.")),
)


def describe(state: Mapping[str, Tensor]) -> str:
    """Say in words what a state dict holds, for messages."""
    keys = {key.removeprefix(CHECKPOINT_PREFIX) for key in state}
    for kind in _MARKS:
        if _holds(keys, kind):
            return _NAMES[kind]
    lora = describe_lora(keys)
    if lora:
        return lora
    for name, fragments in _OTHER_KINDS:
        if any(fragment in key for key in state for fragment in fragments):
            return name
    return f"something unknown ({len(state)} tensors, first key {next(iter(sorted(state)), 'none')!r})"


_MARKS: dict[str, tuple[set[str], ...]] = {
    "control": (
        {"lr_embedder.proj.weight", "control_blocks.0.img_out.weight"},
        {"lr_embedder.proj.weight", "controlnet_blocks.0.x_block.attn.qkv.weight", "zero_linears.0.weight"},
        DIT4SR_MARKS,
        TSDSR_MARKS,
    ),
    "image_prompt": ({"image_prompt.projector.1.weight", "image_prompt.prompt_blocks.0.to_out_ip.weight"},),
    "autoencoder": ({"encoder.weight", "decoder.linear.weight", "decoder.leave.weight"},),
    "mmdit": ({"x_embedder.proj.weight", "joint_blocks.0.x_block.attn.qkv.weight", "final_layer.linear.weight"},),
}


def _holds(keys: Set[str], kind: str) -> bool:
    return any(marks <= keys for marks in _MARKS[kind])


def require(state: Mapping[str, Tensor], kind: Kind, source: str) -> dict[str, Tensor]:
    """Return the part of a state dict that holds the wanted kind: no checkpoint's prefix, no image prompt, no base.

    Raises:
        CheckpointError: it holds something else; the message says what.
    """
    found = dict(state)
    if kind == "mmdit":
        inner = {
            key.removeprefix(CHECKPOINT_PREFIX): value
            for key, value in state.items()
            if key.startswith(CHECKPOINT_PREFIX)
        }
        found = inner or found
    if not _holds(found.keys(), kind):
        raise CheckpointError(
            f"expected {_NAMES[kind]}, but {source} holds {describe(found)}; choose a file of the right kind"
        )
    if kind == "control" and found.keys() >= DIT4SR_MARKS:
        return {key: value for key, value in found.items() if is_control_key(key)}
    if kind == "control":
        return {key: value for key, value in found.items() if not key.startswith(IMAGE_PROMPT_PREFIX)}
    return found


def mmdit_params(state: Mapping[str, Tensor]) -> MMDiTParams:
    """Infer the architecture of an SD3-family transformer from its keys and shapes."""
    hidden_size, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    depth = count_blocks(state, "joint_blocks.")
    pos_embed = state.get("pos_embed")
    return MMDiTParams(
        depth=depth,
        hidden_size=hidden_size,
        in_channels=in_channels,
        patch_size=patch_size,
        context_size=state["context_embedder.weight"].shape[1],
        pooled_size=state["y_embedder.mlp.0.weight"].shape[1],
        pos_embed_max_size=192 if pos_embed is None else int(pos_embed.shape[1] ** 0.5),
        qk_norm="joint_blocks.0.x_block.attn.ln_q.weight" in state,
        dual_attention_blocks=tuple(i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in state),
    )


def infer_mmdit_params(state: Mapping[str, Tensor], source: str) -> MMDiTParams:
    """Infer the architecture as `mmdit_params` does; CheckpointError where keys or shapes do not tell it."""
    return _infer(mmdit_params, state, source)


def control_params(state: Mapping[str, Tensor]) -> ControlParams | ControlNetParams | DiT4SRParams | TSDSRParams:
    """Infer family and architecture of control weights from their keys and shapes."""
    if state.keys() >= TSDSR_MARKS:
        return TSDSRParams.from_state_dict(state)
    if state.keys() >= DIT4SR_MARKS:
        return DiT4SRParams.from_state_dict(state)
    family = ControlNetParams if "zero_linears.0.weight" in state else ControlParams
    return family.from_state_dict(state)


def infer_control_params(
    state: Mapping[str, Tensor], source: str
) -> ControlParams | ControlNetParams | DiT4SRParams | TSDSRParams:
    """Infer family and architecture as `control_params` does; CheckpointError where keys or shapes do not tell them."""
    return _infer(control_params, state, source)


def build_mmdit(state: Mapping[str, Tensor], source: str, factory: Factory = TORCH) -> MMDiT:
    """Build the MMDiT that a state dict holds (whole checkpoint or bare), with its weights."""
    state = require(state, "mmdit", source)
    params = infer_mmdit_params(state, source)
    return fill(lambda where: MMDiT(params, where), state, source, factory)


def build_control(
    state: Mapping[str, Tensor], source: str, factory: Factory = TORCH
) -> ControlStream | ControlNet | DiT4SR | TSDSR:
    """Build the control that a state dict holds, of whichever family, with its weights."""
    state = require(state, "control", source)
    params = infer_control_params(state, source)
    if isinstance(params, TSDSRParams):
        return TSDSR(params)  # what it trained lies in other modules' weights
    if isinstance(params, DiT4SRParams):
        return fill(lambda where: DiT4SR(params, where), state, source, factory)
    if isinstance(params, ControlNetParams):
        return fill(lambda where: ControlNet(params, where), state, source, factory)
    return fill(lambda where: ControlStream(params, where), state, source, factory)


def with_settings(control: ControlT, settings: Mapping[str, Any]) -> ControlT:
    """Return a control with other settings, of those that its family leaves open; both share their weights.

    Args:
        control: of any family.
        settings: values by name, text as well.

    Raises:
        CheckpointError: the family has no such setting, or not with this value.
    """
    params: Any = control.params
    unknown = sorted(settings.keys() - set(params.settings))
    if unknown:
        known = ", ".join(params.settings) or "none"
        raise CheckpointError(f"expected settings that this control has ({known}), got {unknown[0]!r}; leave it out")
    changed: Any = copy.copy(control)
    try:
        values = {name: type(getattr(params, name))(value) for name, value in settings.items()}
        changed.params = replace(params, **values)
    except ValueError as error:
        raise CheckpointError(f"expected a value that the control can have: {error}") from error
    return changed


def build_image_prompt(state: Mapping[str, Tensor], source: str, factory: Factory = TORCH) -> ImagePrompt | None:
    """Build the image prompt that a control's state dict holds beside the control; None where it holds none."""
    size = len(IMAGE_PROMPT_PREFIX)
    inner = {key[size:]: value for key, value in state.items() if key.startswith(IMAGE_PROMPT_PREFIX)}
    if not inner:
        return None
    params = _infer(ImagePromptParams.from_state_dict, inner, source)
    return fill(lambda where: ImagePrompt(params, where), inner, source, factory)


def build_autoencoder(state: Mapping[str, Tensor], source: str) -> PatchAutoencoder:
    """Build the embedded default's autoencoder from its state dict."""
    state = require(state, "autoencoder", source)
    with torch.device("meta"):
        module = PatchAutoencoder(_infer(AutoencoderParams.from_state_dict, state, source))
    return load_into(module, state, source, "cpu")


def _infer(read: Callable[[Mapping[str, Tensor]], ParamsT], state: Mapping[str, Tensor], source: str) -> ParamsT:
    try:
        params = read(state)
        check_sizes(params)
        return params
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"expected keys and shapes that tell the size of the network, but {source} has others "
            f"({type(error).__name__}: {error}); the file is incomplete or damaged"
        ) from error


# What tells the published bases apart: depth, width, qk norm.
_PUBLISHED = {
    (24, 1536, False): "Stable Diffusion 3 medium",
    (24, 1536, True): "Stable Diffusion 3.5 medium",
    (38, 2432, True): "Stable Diffusion 3.5 large",
}


def _said(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    # In published models these are blocks in a row.
    return f"{value[0]} to {value[-1]}" if value else "none"


def _published(fields: Mapping[str, Any]) -> str:
    name = _PUBLISHED.get((fields["depth"], fields["hidden_size"], fields["qk_norm"]))
    return f", {name}" if name else ""


def check_pair(base: MMDiTParams, control: FamilyParams | ImagePromptParams, source: str) -> None:
    """Refuse control or image prompt weights that were trained for a base of another size.

    Raises:
        CheckpointError: depth, width or norm differ.
    """
    fields = control.fit_fields
    wanted, got = ({field: getattr(params, field) for field in fields} for params in (base, control))
    if wanted != got:
        changed = ", ".join(
            f"{field} {_said(got[field])} instead of {_said(wanted[field])}"
            for field in fields
            if wanted[field] != got[field]
        )
        raise CheckpointError(
            f"expected control weights for this base (width {base.hidden_size} = {base.hidden_size // HEAD_DIM} heads, "
            f"{base.depth} blocks), but {source} was trained for another: {changed}; choose the base it was trained on"
            f"{_published(got)}"
        )
