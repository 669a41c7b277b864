"""Load the parts of a restoration from files: base, control, autoencoder, text, and what a control brings besides."""

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .checkpoint import (
    build_autoencoder,
    build_control,
    build_image_prompt,
    build_mmdit,
    check_pair,
    infer_control_params,
    infer_mmdit_params,
    require,
    with_settings,
)
from .companions import EMBEDDINGS, Companions, FixedText, check_text, control_file, read_companions
from .control_files import differing_base, read_control
from .denoiser import Text
from .device import usual_dtype
from .diffusers_keys import read_transformer
from .errors import CheckpointError, EAMError
from .lora import merge
from .model.autoencoder import Autoencoder
from .model.layers import Factory
from .model.mmdit import MMDiTParams
from .model.psi_dit import PsiDiT
from .presets import EMBEDDED, NUM_NULL_TOKENS, SD3, SPECS, Spec
from .vision import VisionTower
from .weight_files import read_metadata, read_weights
from .weight_sets import weight_set

_log = logging.getLogger(__name__)


class TextEncoder(Protocol):
    """What restoring needs of text encoders."""

    def encode(self, prompts: list[str]) -> list[Text]: ...


@dataclass(frozen=True, kw_only=True)
class NullText:
    """Stand in for text encoders: zero tokens for any prompt."""

    num_tokens: int
    context_size: int
    pooled_size: int

    def encode(self, prompts: list[str]) -> list[Text]:
        """Return zeros, and warn when there was something to encode."""
        if any(prompts):
            warnings.warn("the prompt has no effect: no text encoders are loaded", stacklevel=2)
        return [Text(torch.zeros(1, self.num_tokens, self.context_size), torch.zeros(1, self.pooled_size))] * len(
            prompts
        )


def load_parts(
    *,
    base: str | Path,
    control: str | Path,
    autoencoder: str | Path,
    text_encoders: str | Path | None,
    image_encoder: str | Path | None,
    device: str,
    dtype: torch.dtype | None,
    control_settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Load what `Restorer` is made of, see `Restorer.from_files`."""
    _check_device(device)
    control = control_file(Path(control))
    # The small file first, so that a wrong one is refused before gigabytes are read.
    file = read_control(control)
    source, weights = file.source, file.tensors
    spec = spec_of(base, weights, source)
    if dtype is None:
        dtype = torch.float32 if spec is EMBEDDED else usual_dtype(device)
    factory = Factory(dtype=dtype, device=device)
    stream, prompt = build_control(weights, source, factory), build_image_prompt(weights, source, factory)
    if control_settings:
        stream = with_settings(stream, control_settings)
    for note in stream.params.notes:
        _log.info("%s: %s", source, note)
    beside = read_companions(control, weights, stream.params)
    state = require(read_transformer(base), "mmdit", Path(base).name)
    params = infer_mmdit_params(state, Path(base).name)
    for part in (stream, prompt) if prompt else (stream,):
        check_pair(params, part.params, source)
    for warning in (*file.warnings, differing_base(file, state.get)):
        if warning:
            warnings.warn(warning, stacklevel=3)
    text = _text(text_encoders, beside, spec, params, device)
    state = merge(state, beside.transformer, source, dtype)
    return {
        "model": PsiDiT(build_mmdit(state, Path(base).name, factory), stream, prompt),
        "autoencoder": _autoencoder(autoencoder, device, beside),
        "text": text,
        "image_encoder": None if image_encoder is None else VisionTower(image_encoder),
        "spec": spec,
    }


def spec_of(base: str | Path, control: Mapping[str, Tensor] | None = None, source: str = "") -> Spec:
    """Tell whose defaults a model wants: its control's own, or those of the embedded base when it knows no text.

    Args:
        base: file or folder of the base.
        control: what the control's file holds, at least keys and shapes.
        source: what to call it in messages.

    Raises:
        CheckpointError: a file is missing or damaged, or the control is none.
    """
    if control is not None:
        spec = SPECS[infer_control_params(require(control, "control", source), source).preset]
        if spec is not SD3:
            return spec
    if base == EMBEDDED.base:
        return EMBEDDED
    metadata = {} if Path(base).is_dir() else read_metadata(weight_set(base)[0])
    try:
        training = json.loads(metadata.get("training", "{}"))
    except (ValueError, RecursionError):  # somebody else's note under the same name
        training = {}
    return EMBEDDED if isinstance(training, dict) and NUM_NULL_TOKENS in training else SD3


def spec_of_files(base: str | Path, control: str | Path) -> Spec:
    """Tell the same as `spec_of` without reading the control's weights, only their names and shapes."""
    file = read_control(control_file(Path(control)), device="meta")
    return spec_of(base, file.tensors, file.source)


def _autoencoder(path: str | Path, device: str, beside: Companions) -> Autoencoder:
    if Path(path).is_dir():
        from .sd3 import SD3Autoencoder

        return SD3Autoencoder(path, device=device, encoder_changes=beside.encoder)
    if beside.encoder:
        raise CheckpointError(
            f"expected the folder of SD3's autoencoder (diffusers), whose encoder this control changes, got {path}; "
            "name the vae folder of SD3-medium"
        )
    return build_autoencoder(read_weights(path), Path(path).name).float().to(device)


def _text(folder: str | Path | None, beside: Companions, spec: Spec, base: MMDiTParams, device: str) -> TextEncoder:
    """Return text encoders, or what stands for them."""
    encoders: TextEncoder | None = None
    if folder is not None and beside.text is None:
        from .sd3 import SD3TextEncoder

        encoders = SD3TextEncoder(folder, context_size=base.context_size, device=device)
    if spec.fixed_prompt:
        return _fixed_text(encoders, beside, spec, base)
    null = NullText(num_tokens=spec.num_null_tokens, context_size=base.context_size, pooled_size=base.pooled_size)
    return encoders or null


def _fixed_text(encoders: TextEncoder | None, beside: Companions, spec: Spec, base: MMDiTParams) -> TextEncoder:
    text = beside.text
    if text is not None:
        check_text(text, base.context_size, base.pooled_size, EMBEDDINGS)
        return FixedText(lambda: text, spec.name)
    if encoders is None:
        raise CheckpointError(f"{beside.missing_text}, or name text encoders")
    return FixedText(lambda: encoders.encode([spec.fixed_prompt])[0], spec.name)


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EAMError(f"expected a device that torch can use, got {device!r}; use cpu") from error
