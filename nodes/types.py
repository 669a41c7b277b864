"""What the nodes share: the control's socket type, choices of widgets, pictures in ComfyUI's layout and the core's."""

from comfy_api.latest import io
from torch import Tensor

CATEGORY = "EAM"
EMBEDDED_CHOICE = "embedded (tiny, no text)"
AUTO = "auto"
ControlType = io.Custom("EAM_CONTROL")


def to_core(image: Tensor) -> Tensor:
    """Turn an IMAGE [B, H, W, C] into the core's RGB [B, 3, H, W]; alpha is dropped."""
    return image[..., :3].movedim(-1, 1).float()


def to_host(image: Tensor) -> Tensor:
    """Turn the core's [B, 3, H, W] into an IMAGE [B, H, W, 3]."""
    return image.movedim(1, -1).contiguous()
