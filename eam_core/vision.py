"""A CLIP vision tower for the image prompt, run by transformers from a local folder.

What the image prompt reads is the tower's last hidden state: the class token and all patch tokens (257 for ViT-H/14),
before the norm and the projection that make the pooled embedding. ComfyUI's CLIP_VISION gives the same numbers under
`last_hidden_state`, so one set of weights serves both.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import without_autocast
from .errors import CheckpointError, EAMError
from .model.image_prompt import ImagePrompt
from .pretrained import import_package, load_module

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_pixels(images: Tensor, size: int) -> Tensor:
    """Prepare pictures for the tower as ComfyUI does: bicubic, eight bits, CLIP's mean and deviation.

    The whole picture is squeezed into the square, nothing is cropped: the prompt serves every tile of it.

    Args:
        images: [B, 3, H, W] in [0, 1].
        size: side of the tower's input in pixels.

    Returns:
        [B, 3, size, size].
    """
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    images = (images * 255).clamp(0, 255).round() / 255
    mean, std = (images.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


def transformers_class(name: str) -> Any:
    """Return a class of transformers, which imports what the class needs only when it is asked for.

    Raises:
        EAMError: transformers, or a package that it builds on, cannot be imported.
    """
    package = import_package("transformers")
    try:
        return getattr(package, name)
    except ImportError as error:
        raise EAMError(
            f"expected a transformers with {name}, but it cannot be imported ({error}); "
            "run pip install comfyui-eam[sd3], and see that torchvision fits torch"
        ) from error


def load_tower(folder: str | Path, *, projected: bool = False) -> Any:
    """Load a CLIP vision tower in float32 on the CPU; nothing is downloaded or unpickled.

    Args:
        folder: transformers folder of a CLIPVisionModel, a CLIPVisionModelWithProjection or a whole CLIPModel.
        projected: with the layer that makes the pooled embedding, which a file for other programs should hold.

    Returns:
        Transformers' module.

    Raises:
        EAMError: transformers cannot be imported.
        CheckpointError: the folder holds something else.
    """
    kind = transformers_class("CLIPVisionModelWithProjection" if projected else "CLIPVisionModel")
    what = "a CLIP vision tower"
    options = {"torch_dtype": torch.float32, "output_loading_info": True}
    tower, report = load_module(kind, Path(folder), what, **options)
    # Transformers makes up what a file of another kind lacks.
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"expected {what} in {folder}, but it lacks {missing[0]} and {len(missing) - 1} more; "
            "choose the image encoder's folder, e.g. of CLIP ViT-H/14"
        )
    return tower.eval().requires_grad_(False)


class VisionTower:
    """Image tokens of whole pictures."""

    def __init__(self, folder: str | Path):
        """Load from a folder onto the CPU, see `load_tower`."""
        # ComfyUI keeps a tower's weights in half precision and computes in full: these are its numbers.
        self.model = load_tower(folder).half().float()

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return image tokens [B, T, hidden_size], float32, of pictures [B, 3, H, W] in [0, 1].

        It runs where the pictures are, and stays there.
        """
        with without_autocast(images.device):
            pixels = to_pixels(images.float(), self.model.config.image_size)
            return self.model.to(images.device)(pixels).last_hidden_state


def fitting_tower(prompt: ImagePrompt | None, tower: VisionTower | None) -> VisionTower | None:
    """Return the tower if the image prompt can use it; warn of one without the other.

    Raises:
        CheckpointError: the tower's tokens have another width than the image prompt's.
    """
    if prompt is None or tower is None:
        if tower is not None:
            warnings.warn("the image encoder has no effect: the control has no image prompt", stacklevel=3)
        if prompt is not None:
            warnings.warn("the control's image prompt has no effect: no image encoder is given", stacklevel=3)
        return None
    if tower.hidden_size != prompt.params.image_size:
        raise CheckpointError(
            f"expected an image encoder with tokens of {prompt.params.image_size} channels like the image prompt, got "
            f"{tower.hidden_size}; choose the one the image prompt was trained with"
        )
    return tower
