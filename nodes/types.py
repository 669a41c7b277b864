"""What the nodes share: types of their own sockets, choices of widgets, pictures in ComfyUI's layout and the core's."""

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


def to_core(image: Tensor) -> Tensor:
    """Turn an IMAGE [B, H, W, C] into the core's RGB [B, 3, H, W]; alpha is dropped."""
    return image[..., :3].movedim(-1, 1).float()


def to_host(image: Tensor) -> Tensor:
    """Turn the core's [B, 3, H, W] into an IMAGE [B, H, W, 3]."""
    return image.movedim(1, -1).contiguous()
