"""What a control changes of other models: weights of a MODEL and of a VAE's encoder, where sampling starts and how.

Everything happens on clones, through core's own patches, so that low-precision weights, other LoRA and low-memory
loading keep working; the user's MODEL and VAE stay as they are.
"""

import copy
import logging
import uuid
from collections.abc import Iterable
from typing import Any

import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.utils import get_attr, repeat_to_batch_size, swap_scale_shift
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor, nn

from ..eam_core.errors import CheckpointError
from ..eam_core.lora import LowRank, check_changes
from ..eam_core.presets import Spec
from .hooks import Shared, check_lr_size

START_KEY = "eam_start"
_TRANSFORMER_PREFIX = "diffusion_model."
_LOGVAR_RANGE = (-30.0, 20.0)


class ControlAdapter(LoRAAdapter):
    """Core's LoRA, told apart from those of the user."""


def change_weights(patcher: ModelPatcher, changes: Iterable[LowRank], source: str, prefix: str) -> None:
    """Add a control's changes to a clone's weights; those of an earlier control are taken back.

    Args:
        patcher: a clone.
        changes: by SD3's names; none for a control that changes nothing.
        source: what to call the control in messages.
        prefix: of these names in the clone's model.

    Raises:
        CheckpointError: they do not fit the model.
    """
    _forget_changes(patcher)
    changes = list(changes)
    check_changes(changes, {change.key: _shape(patcher.model, prefix + change.key) for change in changes}, source)
    patches = {}
    for change in changes:
        rows = None if change.rows is None else (0, *change.rows)
        place = (prefix + change.key, rows, swap_scale_shift if change.swapped else None)
        patches[place] = ControlAdapter(set(), (change.up, change.down, None, None, None, None))
    if changes:
        patcher.add_patches(patches)


def _forget_changes(patcher: ModelPatcher) -> None:
    kept = {
        key: [patch for patch in patches if not isinstance(patch[1], ControlAdapter)]
        for key, patches in patcher.patches.items()
    }
    if sum(map(len, kept.values())) < sum(map(len, patcher.patches.values())):
        patcher.patches = {key: patches for key, patches in kept.items() if patches}
        patcher.patches_uuid = uuid.uuid4()  # core loads the weights anew when it differs


def _shape(model: nn.Module, key: str) -> tuple[int, ...] | None:
    try:
        weight = get_attr(model, key)
    except AttributeError:
        return None
    return tuple(getattr(weight, "tensor_shape", weight.shape))  # GGUF's tensors hold packed numbers


def set_transformer(patched: ModelPatcher, changes: Iterable[LowRank], source: str) -> None:
    """Change the weights of a MODEL's clone, see `change_weights`."""
    change_weights(patched, changes, source, _TRANSFORMER_PREFIX)


def changed_vae(vae: comfy.sd.VAE, changes: Iterable[LowRank], source: str) -> comfy.sd.VAE:
    """Return a VAE that shares the user's weights and has a control's changes of its encoder.

    Raises:
        CheckpointError: the VAE is not SD3's.
    """
    other = copy.copy(vae)
    other.patcher = vae.patcher.clone()
    try:
        change_weights(other.patcher, changes, source, "")
    except CheckpointError as error:
        raise CheckpointError(
            f"expected the VAE of SD3-medium, whose encoder {source} changes, got another one; connect it"
        ) from error
    return other


def encode_posterior(vae: comfy.sd.VAE, pixels: Tensor) -> Tensor:
    """Return mean and standard deviation of raw latents [B, 2C, H / 8, W / 8] of images [B, H, W, 3] in [0, 1]."""
    other = copy.copy(vae)
    other.first_stage_model = _Moments(vae.first_stage_model)
    other.latent_channels = 2 * vae.latent_channels
    mean, logvar = other.encode(pixels).chunk(2, dim=1)
    return torch.cat([mean, (logvar.clamp(*_LOGVAR_RANGE) / 2).exp()], dim=1)


class _Moments:
    """An autoencoder's encoder as core's VAE calls it, before the mean is taken."""

    def __init__(self, model: nn.Module):
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images, unregularized=True)[0]


def set_latent_shift(patched: ModelPatcher, shift: float) -> None:
    """Make a MODEL's clone read and write latents with another shift; SD3's own leaves or makes it core's."""
    patched.object_patches.pop("latent_format", None)
    own = patched.get_model_object("latent_format")
    if shift != own.shift_factor:
        other = copy.copy(own)
        other.shift_factor = shift
        patched.add_object_patch("latent_format", other)


class StartFromLR(Shared):
    """Start from the LR latents and not from noise, whatever samples, and take the control's steps (OUTER_SAMPLE)."""

    def __init__(self, mean: Tensor, spread: Tensor, spec: Spec):
        """Keep mean and standard deviation of the raw latents, and the control's settings."""
        self.mean, self.spread, self.spec = mean, spread, spec

    def __call__(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Run the sampling from sigma 1."""
        check_lr_size(self.mean, noise)
        mean, spread = (repeat_to_batch_size(part, len(noise)).to(noise) for part in (self.mean, self.spread))
        latent_format = executor.class_obj.model_patcher.get_model_object("latent_format")
        levels = torch.linspace(1, 0, self.spec.steps + 1).to(sigmas)
        logging.info(f"EAM: starts from the picture: {self.spec.sampler}, steps {self.spec.steps}, start sigma 1")
        start = latent_format.process_in(mean + spread * noise)
        # At sigma 1, core starts from the noise alone.
        own = comfy.samplers.sampler_object(self.spec.sampler)  # some others never reach the model in a single step
        return executor(start, latent_image, own, levels, *args, **kwargs)


def set_start(patched: ModelPatcher, spec: Spec, mean: Tensor, spread: Tensor | None) -> None:
    """Let a MODEL's clone start where its control wants it; an earlier control's wish is forgotten.

    Args:
        patched: a clone.
        spec: the control's settings.
        mean: raw LR latents [B, C, H, W].
        spread: their standard deviation; None for a control that starts from noise.
    """
    patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, START_KEY)
    if spread is not None:
        wrapper = StartFromLR(mean, spread, spec)
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, START_KEY, wrapper)
