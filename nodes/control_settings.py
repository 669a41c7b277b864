"""EAM_ControlSettings: what a published control's files leave open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .types import ControlType, schema

if TYPE_CHECKING:
    from .patcher import Control

AS_LOADED = "as loaded"


class ControlSettings(io.ComfyNode):
    """EAM_ControlSettings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "DiT4SR settings",
                "key rule",
                "conv scale",
                "dit4sr_q",
                "dit4sr_f",
                "dit4sr_r1",
            ],
            node_id="EAM_ControlSettings",
            display_name="EAM Control Settings",
            description="Changes what the files of DiT4SR leave open. Not needed for other controls.",
            inputs=[
                ControlType.Input("control", tooltip="From EAM Load Model, with DiT4SR's weights."),
                io.Combo.Input(
                    "key_rule",
                    options=[AS_LOADED, "first", "r1"],
                    default=AS_LOADED,
                    tooltip="first: dit4sr_q and dit4sr_f. r1: dit4sr_r1. The wrong one breaks the picture; as loaded "
                    "is what the weights themselves tell.",
                ),
                io.Float.Input(
                    "conv_scale",
                    default=1.2,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip="Share of image structure that flows into the result inside the blocks. 1.2 as published.",
                ),
            ],
            outputs=[ControlType.Output(display_name="control", tooltip="The same weights with these settings.")],
        )

    @classmethod
    def execute(cls, control: Control, key_rule: str, conv_scale: float) -> io.NodeOutput:
        """Share the weights with the control that came in."""
        from .patcher import change_settings

        rule = {} if key_rule == AS_LOADED else {"key_rule": key_rule}
        return io.NodeOutput(change_settings(control, {"conv_scale": conv_scale, **rule}))
