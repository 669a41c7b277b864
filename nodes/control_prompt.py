"""EAM_ControlPrompt: the conditioning of a control that was trained with one text for every picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .types import ControlType, schema

if TYPE_CHECKING:
    from comfy.sd import CLIP

    from .patcher import Control


class ControlPrompt(io.ComfyNode):
    """EAM_ControlPrompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "TSD-SR prompt",
                "fixed prompt",
                "default prompt embedding",
                "prompt_embeds",
            ],
            node_id="EAM_ControlPrompt",
            display_name="EAM Control Prompt",
            description="The prompt of a control that was trained with one text for every picture (TSD-SR): for "
            "positive and negative of EAM Apply Control. Needs no text encoder where the control's folder holds "
            "embeddings.safetensors.",
            inputs=[
                ControlType.Input(
                    "control", tooltip="From EAM Load Model: one that was trained with one text, such as TSD-SR."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="SD3's text encoders, to embed the text where the control's folder has no embedding.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="For positive and negative of EAM Apply Control."),
                io.String.Output(display_name="text", tooltip="The words of the prompt, to read."),
            ],
        )

    @classmethod
    def execute(cls, control: Control, clip: CLIP | None = None) -> io.NodeOutput:
        """Prefer what the control's authors embedded."""
        from .conditioning import control_prompt

        return io.NodeOutput(control_prompt(control, clip), control.spec.fixed_prompt)
