"""The only file that touches ComfyUI's ModelPatcher: control weights, and their hooks around SD3's blocks.

An APPLY_MODEL wrapper starts each forward pass: it takes the LR latents out of the conditioning, embeds them and leaves
the run in a copy of transformer_options. A replace patch on each block lets the noisy tokens read from that run before
the block itself sees them. No state stays on these objects, as passes of several conditionings interleave.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..eam_core.checkpoint import build_control, check_pair, read_weights
from ..eam_core.errors import CheckpointError
from ..eam_core.guidance import control_scale_at
from ..eam_core.model.family import FamilyParams
from ..eam_core.model.layers import Factory
from ..eam_core.model.mmdit import MMDiTParams
from ..eam_core.presets import SD3

LR_COND = "eam_lr"
_KEY = "eam_control"
_TILE = "eam_tile"


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """What travels between nodes as EAM_CONTROL: a control of any family under ComfyUI's memory management."""

    patcher: ModelPatcher
    params: FamilyParams
    source: str


def managed(module: nn.Module, load_device: torch.device, offload_device: torch.device) -> ModelPatcher:
    """Put a module under ComfyUI's memory management."""
    return ModelPatcher(module, load_device=load_device, offload_device=offload_device)


def load_control(path: Path) -> Control:
    """Read control weights into a module of ComfyUI's casting layers, on the offload device.

    Raises:
        CheckpointError: the file holds something else or is damaged.
    """
    state = read_weights(path)
    management = comfy.model_management
    dtype = management.unet_dtype(
        model_params=sum(value.numel() for value in state.values()), weight_dtype=comfy.utils.weight_dtype(state)
    )
    offload_device = management.unet_offload_device()
    factory = Factory(operations=comfy.ops.manual_cast, dtype=dtype, device=offload_device)
    module = build_control(state, path.name, factory)
    patcher = managed(module, management.get_torch_device(), offload_device)
    return Control(patcher=patcher, params=module.params, source=path.name)


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
    )


def set_native_tile(model: ModelPatcher, pixels: int) -> None:
    """Note the tile size a base was trained for."""
    model.set_attachments(_TILE, pixels)


def native_tile(model: ModelPatcher) -> int:
    """Return the tile size a base was trained for, in pixels."""
    return model.get_attachment(_TILE) or SD3.tile


def check_lr_size(lr: Tensor, x: Tensor) -> None:
    """Refuse to sample latents x of another size than the LR latents; both [B, C, H, W]."""
    (lr_height, lr_width), (height, width) = lr.shape[-2:], x.shape[-2:]
    if (lr_height, lr_width) != (height, width):
        raise ValueError(
            f"expected latents of {lr_width} x {lr_height} as EAM_ApplyControl made them, got {width} x {height}; "
            "connect its LATENT output to the sampler"
        )


def apply_control(model: ModelPatcher, control: Control, scale: float, start: float, end: float) -> ModelPatcher:
    """Return a clone of an SD3 MODEL with the control around each of its blocks; an earlier control is replaced.

    Args:
        model: any MODEL of the SD3 family.
        control: weights trained for a base of this size.
        scale: strength; 0 is the base alone.
        start: fraction of the sampling at which the control sets in.
        end: fraction of the sampling at which it stops.

    Raises:
        CheckpointError: another family, or control weights for another size.
    """
    params = base_params(model)
    check_pair(params, control.params, control.source)
    if scale == 0 or start >= end:
        logging.warning(f"EAM: the control does nothing at control_scale {scale:g} from {start:g} to {end:g}")
    patched = model.clone()
    hook = _ControlHook(control, scale, start, end)
    for kind, wrapper in ((WrappersMP.APPLY_MODEL, hook), (WrappersMP.PREPARE_SAMPLING, _count_lr_tokens)):
        patched.remove_wrappers_with_key(kind, _KEY)
        patched.add_wrapper_with_key(kind, _KEY, wrapper)
    # Lets core count LR tokens when it decides what to run in one batch.
    counted = patched.get_model_object("memory_usage_factor_conds")
    patched.add_object_patch("memory_usage_factor_conds", (*(name for name in counted if name != LR_COND), LR_COND))
    replaced = model.model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
    for index in range(params.depth):
        previous = replaced.get(("double_block", index))
        if isinstance(previous, _BlockPatch):
            previous = previous.previous
        patched.set_model_patch_replace(_BlockPatch(hook, index, previous), "dit", "double_block", index)
    return patched


def _count_lr_tokens(executor: Any, model: ModelPatcher, noise_shape: list[int], *args: Any, **kwargs: Any) -> Any:
    """Ask for memory as for twice the batch: there are as many LR tokens as noisy ones (PREPARE_SAMPLING)."""
    return executor(model, [2 * noise_shape[0], *noise_shape[1:]], *args, **kwargs)


class _Shared:
    """An object that clones of a MODEL share: `clone` deep-copies model_options."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


class _ControlHook(_Shared):
    """Start a control run for each forward pass (APPLY_MODEL)."""

    def __init__(self, control: Control, scale: float, start: float, end: float):
        self.control, self.scale, self.start, self.end = control, scale, start, end

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        sigma: Tensor,
        c_concat: Tensor | None = None,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[Any, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        """Run the rest of the pass; conditioning without LR latents runs as the base."""
        lr = conds.pop(LR_COND, None)
        options = transformer_options or {}
        sampling = executor.class_obj.model_sampling
        active = (sampling.percent_to_sigma(self.start), sampling.percent_to_sigma(self.end))
        scale = control_scale_at(float(sigma[0]), self.scale, *active)
        if lr is not None and scale != 0:
            options = {**options, self: self._run(executor.class_obj, x, lr, scale)}
        return executor(x, sigma, c_concat, context, control, options, **conds)

    def _run(self, base: comfy.model_base.SD3, x: Tensor, lr: Tensor, scale: float) -> Any:
        check_lr_size(lr, x)
        size = tuple(x.shape[-2:])
        network = base.diffusion_model
        limit = None if network.pos_embed is None else network.pos_embed_max_size * network.patch_size
        if limit is not None and max(size) > limit:
            raise ValueError(
                f"expected latents of at most {limit} x {limit} in one piece, got {size[1]} x {size[0]}; "
                "use EAM_TiledSampler with smaller tiles"
            )
        lr = comfy.model_management.cast_to_device(lr, x.device, base.manual_cast_dtype or base.get_dtype())
        stream = self.control.patcher.model
        return stream.run(stream.embed(lr, network.cropped_pos_embed(size, device=x.device)), scale)


class _BlockPatch(_Shared):
    """Run a block, and whatever was patched around it before, inside the control run."""

    def __init__(self, hook: _ControlHook, index: int, previous: Any):
        self.hook, self.index, self.previous = hook, index, previous

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Tensor]:
        run = args["transformer_options"].get(self.hook)
        inner = (lambda changed: self.previous(changed, extra)) if self.previous else extra["original_block"]
        if run is None:
            return inner(args)

        def block(img: Tensor, txt: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
            out = inner({**args, "img": img, "txt": txt, "vec": vec})
            return out["img"], out["txt"]

        img, txt = run.run_block(self.index, args["img"], args["txt"], args["vec"], block)
        return {"img": img, "txt": txt}

    def models(self) -> list[ModelPatcher]:
        """Name the models that core must load along with the base."""
        return [self.hook.control.patcher, *(self.previous.models() if hasattr(self.previous, "models") else [])]

    def to(self, device_or_dtype: Any) -> "_BlockPatch":
        """Pass on a move; the control itself is moved by core."""
        if hasattr(self.previous, "to"):
            self.previous = self.previous.to(device_or_dtype)
        return self
