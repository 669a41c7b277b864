"""EAM_LoadCaptioner and EAM_SubjectCaption: a text prompt that says what a picture is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from .types import CaptionerType, TileCaptionsType, schema, to_core

if TYPE_CHECKING:
    from torch import Tensor

    from ..eam_core.captioning.messages import Generator


class LoadCaptioner(io.ComfyNode):
    """EAM_LoadCaptioner."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "VLM loader",
                "LLaVA loader",
                "Qwen-VL loader",
                "MiniCPM-V",
                "Ollama",
                "vLLM",
                "image to text",
                "captioning model",
            ],
            node_id="EAM_LoadCaptioner",
            display_name="EAM Load Captioner",
            description="Opens a vision-language model that describes pictures: a folder below ComfyUI's models "
            "folder, or an OpenAI-compatible server such as vLLM, llama.cpp or Ollama on this machine.",
            inputs=[
                io.String.Input(
                    "source",
                    default="",
                    placeholder="LLM/MiniCPM-V-4.6 or http://127.0.0.1:8000/v1",
                    tooltip="A folder below ComfyUI's models folder with a model of transformers, or the address of "
                    "an endpoint. Pictures go to other machines only if EAM_ALLOW_REMOTE lists them for ComfyUI.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    tooltip="Which of an endpoint's models; empty takes its first. Not for a folder.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Instead of a source: a CLIP that writes text and sees pictures, such as Qwen3-VL or Gemma "
                    "in newer versions of ComfyUI. It gets the example answers without their pictures.",
                ),
            ],
            outputs=[CaptionerType.Output(display_name="captioner", tooltip="For EAM Subject Caption.")],
        )

    @classmethod
    def execute(cls, source: str, name: str = "", clip: Any = None) -> io.NodeOutput:
        """Open it; a folder is checked now, and its weights are read when they are needed."""
        from .captioner import open_captioner

        return io.NodeOutput(open_captioner(source, name, clip))


class SubjectCaption(io.ComfyNode):
    """EAM_SubjectCaption."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "image caption",
                "describe image",
                "image to prompt",
                "interrogate",
                "SUPIR LLaVA prompt",
                "Florence caption",
                "JoyCaption",
                "tagger",
            ],
            node_id="EAM_SubjectCaption",
            display_name="EAM Subject Caption",
            description="Describes what a picture is about, for the prompt of an SD3 model. Type a caption, or let a "
            "captioner write one and edit it. Connect caption to CLIP Text Encode.",
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The low-resolution image; of a batch the first one is described."),
                CaptionerType.Input("captioner", optional=True, lazy=True, tooltip="From EAM Load Captioner."),
                io.String.Input(
                    "caption",
                    multiline=True,
                    default="",
                    placeholder="your own caption; leave empty to ask the captioner",
                    tooltip="What is typed here is used as it is, and no model is asked or loaded for it.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["sa", "da"],
                    default="sa",
                    tooltip="sa: subject-aware, about what is in focus, with example pictures. da: all details, "
                    "without examples.",
                ),
                io.String.Input(
                    "extra_instruction",
                    default="",
                    placeholder="e.g. name the species of the bird",
                    tooltip="Added to what the captioner is told.",
                ),
                io.Int.Input("max_tokens", default=512, min=16, max=4096, tooltip="Most tokens of the answer."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,
                    tooltip="Same seed, same caption; answers are kept, so asking again costs nothing.",
                ),
                io.Boolean.Input(
                    "tile_captions",
                    default=False,
                    tooltip="Describe each tile as well, for EAM Encode Tile Captions; takes a model call per tile.",
                ),
                io.Float.Input(
                    "scale",
                    default=4.0,
                    min=1.0,
                    max=8.0,
                    step=0.25,
                    tooltip="For tiles: how many times the image is enlarged, as in EAM Apply Control.",
                ),
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    tooltip="Side of a tile in pixels of the result, as in EAM Tiled Sampler. 0: 1024, what SD3 likes.",
                ),
                io.Int.Input(
                    "overlap",
                    default=0,
                    min=0,
                    max=2048,
                    step=16,
                    tooltip="How far neighbouring tiles overlap, in pixels of the result. 0: a quarter of the tile.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="caption", tooltip="For the text of CLIP Text Encode."),
                TileCaptionsType.Output(display_name="tile_captions", tooltip="For EAM Encode Tile Captions."),
                io.String.Output(
                    display_name="report", tooltip="Caption, focal areas and tiles as JSON, as the command line prints."
                ),
            ],
        )

    @classmethod
    def check_lazy_status(cls, caption: str = "", tile_captions: bool = False, **inputs: Any) -> list[str]:
        """Ask for the captioner only where it has something to do."""
        waiting = "captioner" in inputs and inputs["captioner"] is None
        return ["captioner"] if waiting and (tile_captions or not (caption or "").strip()) else []

    @classmethod
    def execute(
        cls,
        image: Tensor,
        caption: str,
        mode: str,
        extra_instruction: str,
        max_tokens: int,
        seed: int,
        tile_captions: bool,
        scale: float,
        tile: int,
        overlap: int,
        captioner: Generator | None = None,
    ) -> io.NodeOutput:
        """Caption the first picture; the page shows the caption for the user to edit."""
        from ..eam_core.captioning.captioner import CaptionConfig
        from ..eam_core.captioning.messages import GenerateConfig
        from .describe import Tiles, as_report, describe

        config = CaptionConfig(
            mode=mode, extra=extra_instruction, generate=GenerateConfig(max_tokens=max_tokens, seed=seed)
        )
        tiles = Tiles(scale=scale, tile=tile, overlap=overlap) if tile_captions else None
        whole, of_tiles = describe(to_core(image)[0], caption, captioner, config, tiles)
        text = whole.caption
        return io.NodeOutput(text, of_tiles, as_report(whole, of_tiles), ui=ui.PreviewText(text))
