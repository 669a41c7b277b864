"""What the nodes share: schemas, types of their own sockets, pictures in ComfyUI's layout and the core's."""

import dataclasses
from typing import Any

from comfy_api.latest import io
from torch import Tensor

CATEGORY = "EAM"
EMBEDDED_CHOICE = "embedded (tiny, no text)"
AUTO = "auto"
ControlType = io.Custom("EAM_CONTROL")
CaptionerType = io.Custom("EAM_CAPTIONER")
TileCaptionsType = io.Custom("EAM_TILE_CAPTIONS")
"""A list of `eam_core.captioning.captioner.TileCaption`."""
TileConditioningType = io.Custom("EAM_TILE_CONDITIONING")
"""A list of (left, top, right, bottom as fractions of the picture) and the CONDITIONING there."""
FolderItemType = io.Custom("EAM_FOLDER_ITEM")
"""A `folder_runs.FolderItem`."""


def schema(*, search_aliases: list[str], **fields: Any) -> io.Schema:
    """Build a node's Schema in the pack's category.

    Args:
        search_aliases: what else people call it; hosts that search by names alone leave them out.
        fields: of io.Schema.
    """
    known = {field.name for field in dataclasses.fields(io.Schema)}
    extra = {"search_aliases": search_aliases} if "search_aliases" in known else {}
    return io.Schema(category=CATEGORY, **fields, **extra)


def advanced(widget: io.WidgetInput) -> io.WidgetInput:
    """Fold a widget away under "show advanced"."""
    widget.extra_dict = {**widget.extra_dict, "advanced": True}
    return widget


def to_core(image: Tensor) -> Tensor:
    """Turn an IMAGE [B, H, W, C] into the core's RGB [B, 3, H, W]; alpha is dropped."""
    return image[..., :3].movedim(-1, 1).float()


def to_host(image: Tensor) -> Tensor:
    """Turn the core's [B, 3, H, W] into an IMAGE [B, H, W, 3]."""
    return image.movedim(1, -1).contiguous()
