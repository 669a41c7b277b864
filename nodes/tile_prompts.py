"""EAM_EncodeTileCaptions: captions of a picture's tiles into prompts for EAM_TiledSampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .types import TileCaptionsType, TileConditioningType, schema

if TYPE_CHECKING:
    from comfy.sd import CLIP

    from ..eam_core.captioning.captioner import TileCaption


class EncodeTileCaptions(io.ComfyNode):
    """EAM_EncodeTileCaptions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "per-tile prompts",
                "regional prompt",
                "regional conditioning",
                "area conditioning",
                "tile prompt",
                "CLIP Text Encode tiles",
            ],
            node_id="EAM_EncodeTileCaptions",
            display_name="EAM Encode Tile Captions",
            description="Encodes the captions of a picture's tiles, so that EAM Tiled Sampler can prompt each of its "
            "tiles with what is there. Equal captions are encoded once.",
            inputs=[
                io.Clip.Input("clip", tooltip="The one that encodes the positive prompt."),
                TileCaptionsType.Input(
                    "tile_captions", tooltip="From EAM Subject Caption with tile_captions switched on."
                ),
            ],
            outputs=[TileConditioningType.Output(display_name="tile_positive", tooltip="For EAM Tiled Sampler.")],
        )

    @classmethod
    def execute(cls, clip: CLIP | None, tile_captions: list[TileCaption]) -> io.NodeOutput:
        """Encode."""
        from .tile_conditioning import encode_captions

        return io.NodeOutput(encode_captions(clip, tile_captions))
