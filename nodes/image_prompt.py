"""EAM_ImagePrompt: let what a CLIP vision model sees in the picture guide a MODEL (ConsisSR's HPA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .types import ControlType, schema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .patcher import Control


class ImagePrompt(io.ComfyNode):
    """EAM_ImagePrompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "IP-Adapter",
                "IPAdapter",
                "image prompt adapter",
                "CLIP vision guidance",
                "reference image",
                "ConsisSR HPA",
                "unCLIP conditioning",
            ],
            node_id="EAM_ImagePrompt",
            display_name="EAM Image Prompt",
            description="Guides an SD3 model by what a CLIP vision model sees in the low-resolution image. Needs "
            "control weights that were trained with an image prompt; before or after EAM Apply Control, or without it.",
            inputs=[
                io.Model.Input("model", tooltip="An SD3-family base of the size that the image prompt was trained on."),
                ControlType.Input("control", tooltip="Its file must hold an image prompt."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    tooltip="From CLIP Vision Encode of the low-resolution image, with crop: none, and the CLIP vision "
                    "model that the image prompt was trained with.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.05, tooltip="1 as trained, 0 without it."
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the sampling after which it sets in. 0: from the first step.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the sampling after which it stops. 1: up to the last step.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the image prompt; the one that came in stays.")],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, control: Control, clip_vision_output: Any, strength: float, start: float, end: float
    ) -> io.NodeOutput:
        """Take the hidden state that `eam_core.vision` takes as well."""
        from .patcher import apply_image_prompt

        tokens = clip_vision_output.last_hidden_state
        return io.NodeOutput(apply_image_prompt(model, control, tokens, strength, start, end))
