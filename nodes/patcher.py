"""The only file that works on ModelPatchers: control weights, image prompts, and their hooks on a clone of a MODEL.

What the hooks do in a forward pass stands in hooks.py.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.ops
import torch
from comfy.conds import CONDRegular
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..eam_core.checkpoint import build_control, build_image_prompt, check_pair, with_settings
from ..eam_core.companions import Companions, read_companions
from ..eam_core.control_files import ControlFile, differing_base, read_control
from ..eam_core.errors import CheckpointError
from ..eam_core.model.family import NO_STRENGTH, ControlFamily, FamilyParams
from ..eam_core.model.layers import Factory
from ..eam_core.model.mmdit import MMDiTParams
from ..eam_core.presets import SD3, SPECS, Spec
from .hooks import IMAGE_COND, LR_COND, AddCond, BlockPatch, ControlHook, Hook, ImagePromptHook
from .weight_patches import set_latent_shift, set_transformer

_CONTROL_KEY, _IMAGE_KEY = "eam_control", "eam_image_prompt"
_TILE, _CONTROL_TILE = "eam_tile", "eam_control_tile"


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """What travels between nodes as EAM_CONTROL: a control of any family under ComfyUI's memory management."""

    patcher: ModelPatcher
    module: ControlFamily
    params: FamilyParams
    file: ControlFile
    image_prompt: ModelPatcher | None = None
    beside: Companions = field(default_factory=Companions)

    @property
    def spec(self) -> Spec:
        """The settings that it is sampled with."""
        return SPECS[self.params.preset]

    @property
    def source(self) -> str:
        """What to call it in messages."""
        return self.file.source


class WholePatcher(ModelPatcher):
    """Loads a module whole, even with --novram: core can cast its own layers one by one, but not torch's."""

    def load(self, *args: Any, **kwargs: Any) -> None:
        """Load everything, see `ModelPatcher.load`."""
        super().load(*args, **kwargs | {"full_load": True})


def managed(
    module: nn.Module, load_device: torch.device, offload_device: torch.device, *, whole: bool = False
) -> ModelPatcher:
    """Put a module under ComfyUI's memory management; `whole` for one of torch's own layers."""
    kind = WholePatcher if whole else ModelPatcher
    return kind(module, load_device=load_device, offload_device=offload_device)


def load_control(path: Path) -> Control:
    """Read control weights, see `read_control`, into a module of ComfyUI's casting layers, on the offload device.

    Raises:
        CheckpointError: the file holds something else or is damaged.
    """
    file = read_control(path)
    state, source = file.tensors, file.source
    management = comfy.model_management
    dtype = management.unet_dtype(
        model_params=sum(value.numel() for value in state.values()), weight_dtype=comfy.utils.weight_dtype(state)
    )
    offload_device = management.unet_offload_device()
    factory = Factory(operations=comfy.ops.manual_cast, dtype=dtype, device=offload_device)
    module, prompt = build_control(state, source, factory), build_image_prompt(state, source, factory)
    beside = read_companions(path, state, module.params)
    for note in module.params.notes:
        logging.info(f"EAM: {source}: {note}")
    for warning in file.warnings:
        logging.warning(f"EAM: {warning}")
    devices = (management.get_torch_device(), offload_device)
    return Control(
        patcher=managed(module, *devices),
        module=module,
        params=module.params,
        file=replace(file, tensors={}),  # the module has them
        image_prompt=None if prompt is None else managed(prompt, *devices),
        beside=beside,
    )


def base_params(model: ModelPatcher) -> MMDiTParams:
    """Read the sizes of a MODEL's network.

    Raises:
        CheckpointError: it is not of the SD3 family.
    """
    if not isinstance(model.model, comfy.model_base.SD3):
        raise CheckpointError(
            f"expected an SD3-family MODEL, got {type(model.model).__name__}; load SD3 or SD3.5 medium or large, "
            "or the embedded model"
        )
    network = model.model.diffusion_model
    return MMDiTParams(
        depth=len(network.joint_blocks),
        hidden_size=network.hidden_size,
        in_channels=network.in_channels,
        patch_size=network.patch_size,
        qk_norm=not isinstance(network.joint_blocks[0].x_block.attn.ln_q, nn.Identity),
        dual_attention_blocks=tuple(
            index for index, block in enumerate(network.joint_blocks) if block.x_block.x_block_self_attn
        ),
    )


def set_native_tile(model: ModelPatcher, spec: Spec) -> None:
    """Note the tiles that a base was trained for."""
    model.set_attachments(_TILE, (spec.tile, spec.overlap))


def _set_control_tile(patched: ModelPatcher, spec: Spec) -> None:
    """Note the tiles that a control wants; those that an earlier one wanted are forgotten."""
    patched.remove_attachments(_CONTROL_TILE)
    if spec is not SD3:
        patched.set_attachments(_CONTROL_TILE, (spec.tile, spec.overlap))


def native_tile(model: ModelPatcher) -> tuple[int, int]:
    """Return size and overlap of the tiles that a MODEL was trained for, in pixels."""
    return model.get_attachment(_CONTROL_TILE) or model.get_attachment(_TILE) or (SD3.tile, SD3.overlap)


def apply_control(model: ModelPatcher, control: Control, scale: float, start: float, end: float) -> ModelPatcher:
    """Return a clone of an SD3 MODEL with the control around each of its blocks; an earlier control is replaced.

    Args:
        model: any MODEL of the SD3 family.
        control: weights trained for a base of this size.
        scale: strength; 0 is the base alone.
        start: fraction of the sampling at which the control sets in.
        end: fraction of the sampling at which it stops.

    Raises:
        CheckpointError: another family, control weights for another size, or a scale that they cannot have.
    """
    check_pair(base_params(model), control.params, control.source)
    if control.spec.start == "lr" and scale == 0:
        raise CheckpointError(
            f"expected control_scale 1 for {control.source}, whose weights are the base's, got 0; leave the node out"
        )
    if scale == 0 or start >= end:
        logging.warning(f"EAM: the control does nothing at control_scale {scale:g} from {start:g} to {end:g}")
    if not control.module.has_strength and scale not in (0, 1):
        logging.warning(f"EAM: {NO_STRENGTH}")
    differing = differing_base(control.file, lambda key: _own_weight(model, key))
    if differing:
        logging.warning(f"EAM: {differing}")
    if model.get_wrappers(WrappersMP.APPLY_MODEL, _CONTROL_KEY):
        logging.warning(f"EAM: {control.source} takes the place of the control that the MODEL had; one acts at a time")
    patched = model.clone()
    set_transformer(patched, control.beside.transformer, control.source)
    if control.beside.transformer and (start, end) != (0, 1):
        logging.warning(f"EAM: start and end have no effect: {control.source} changes weights, for the whole sampling")
    set_latent_shift(patched, control.spec.latent_shift)
    _set_control_tile(patched, control.spec)
    _add_hook(patched, ControlHook(control.patcher, control.module, scale, start, end), _CONTROL_KEY)
    _replace_wrapper(patched, WrappersMP.PREPARE_SAMPLING, _CONTROL_KEY, _count_lr_tokens)
    # Lets core count LR tokens when it decides what to run in one batch.
    counted = patched.get_model_object("memory_usage_factor_conds")
    patched.add_object_patch("memory_usage_factor_conds", (*(name for name in counted if name != LR_COND), LR_COND))
    return patched


def change_settings(control: Control, settings: dict[str, Any]) -> Control:
    """Return a control with other settings that shares its weights, see `eam_core.checkpoint.with_settings`."""
    module = with_settings(control.module, settings)
    for note in module.params.notes:
        logging.info(f"EAM: {control.source}: {note}")
    return replace(control, module=module, params=module.params)


def _own_weight(model: ModelPatcher, key: str) -> Tensor | None:
    """Return a weight of a MODEL's network as its file has it; None where patches or low precision hide it."""
    key = f"diffusion_model.{key}"
    if key in model.backup:
        return model.backup[key].weight  # a LoRA, of this clone or another, is in the place of it
    try:
        weight = model.get_model_object(key)
    except AttributeError:
        return None
    return weight if type(weight) in (Tensor, nn.Parameter) else None


def apply_image_prompt(
    model: ModelPatcher, control: Control, tokens: Tensor, strength: float, start: float, end: float
) -> ModelPatcher:
    """Return a clone of an SD3 MODEL with the control's image prompt around each block; an earlier one is replaced.

    Args:
        model: any MODEL of the SD3 family, with a control or without.
        control: its file holds the image prompt.
        tokens: the vision tower's tokens [B, T, image_size]; pictures are repeated to the batch of latents.
        strength: 0 is without image prompt.
        start: fraction of the sampling at which it sets in.
        end: fraction of the sampling at which it stops.

    Raises:
        CheckpointError: another family, no image prompt in the file, or one for another base or vision tower.
    """
    prompt, base = control.image_prompt, base_params(model)
    if prompt is None:
        raise CheckpointError(
            f"expected control weights with an image prompt, but {control.source} holds none; choose a file that was "
            "trained with one, or leave EAM_ImagePrompt out"
        )
    params = prompt.model.params
    check_pair(base, params, control.source)
    if tokens.shape[-1] != params.image_size:
        raise CheckpointError(
            f"expected a CLIP vision model with tokens of {params.image_size} channels like the image prompt of "
            f"{control.source}, got {tokens.shape[-1]}; load the one it was trained with"
        )
    if strength == 0 or start >= end:
        logging.warning(f"EAM: the image prompt does nothing at strength {strength:g} from {start:g} to {end:g}")
    patched = model.clone()
    _add_hook(patched, ImagePromptHook(prompt, strength, start, end), _IMAGE_KEY)
    _replace_wrapper(patched, WrappersMP.OUTER_SAMPLE, _IMAGE_KEY, AddCond(IMAGE_COND, CONDRegular(tokens)))
    return patched


def _add_hook(patched: ModelPatcher, hook: Hook, key: str) -> None:
    _replace_wrapper(patched, WrappersMP.APPLY_MODEL, key, hook)
    replaced = patched.model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
    for index in range(base_params(patched).depth):
        patch = BlockPatch.adding(hook, index, replaced.get(("double_block", index)))
        patched.set_model_patch_replace(patch, "dit", "double_block", index)


def _replace_wrapper(patched: ModelPatcher, kind: str, key: str, wrapper: Any) -> None:
    patched.remove_wrappers_with_key(kind, key)
    patched.add_wrapper_with_key(kind, key, wrapper)


def _count_lr_tokens(executor: Any, model: ModelPatcher, noise_shape: list[int], *args: Any, **kwargs: Any) -> Any:
    """Ask for memory as for twice the batch: every family adds at most one token per noisy one (PREPARE_SAMPLING)."""
    return executor(model, [2 * noise_shape[0], *noise_shape[1:]], *args, **kwargs)
