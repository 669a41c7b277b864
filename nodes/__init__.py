"""The nodes of the pack, all in the category "EAM".

Files of nodes hold schemas and short `execute` functions, which import the rest when they first run: ComfyUI's start
stays fast.
"""

from comfy_api.latest import ComfyExtension, io

from .captions import LoadCaptioner, SubjectCaption
from .compare import Compare
from .control import ApplyControl
from .control_prompt import ControlPrompt
from .control_settings import ControlSettings
from .folder import LoadFolder, SaveFolder
from .image_prompt import ImagePrompt
from .images import ColorFix, Degrade
from .load import LoadModel
from .report import Report
from .sampler import TiledSampler
from .tile_prompts import EncodeTileCaptions
from .upscale import Upscale


class EAMExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """List the nodes in the order of a graph."""
        return [
            Upscale,
            LoadModel,
            ControlPrompt,
            ControlSettings,
            ApplyControl,
            ImagePrompt,
            LoadCaptioner,
            SubjectCaption,
            EncodeTileCaptions,
            TiledSampler,
            ColorFix,
            Degrade,
            LoadFolder,
            SaveFolder,
            Compare,
            Report,
        ]
