"""EAM_LoadModel: an SD3 checkpoint or the embedded default, with control weights that fit it."""

import folder_paths
from comfy_api.latest import io

from .control_choices import control_choices
from .types import AUTO, EMBEDDED_CHOICE, ControlType, schema


class LoadModel(io.ComfyNode):
    """EAM_LoadModel."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "SUPIR model loader",
                "upscale model loader",
                "load SD3 control",
                "super resolution",
                "restore photo",
                "DiT4SR",
                "TSD-SR",
                "Psi-DiT",
            ],
            node_id="EAM_LoadModel",
            display_name="EAM Load Model",
            description="Loads a base of the SD3 family and the control weights that make it restore photos. "
            "A MODEL from another loader works as well: take only the control from here.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[EMBEDDED_CHOICE, *folder_paths.get_filename_list("checkpoints")],
                    default=EMBEDDED_CHOICE,
                    tooltip="From models/checkpoints: SD3 medium, SD3.5 medium or large. The embedded model is small "
                    "and ignores prompts.",
                ),
                io.Combo.Input(
                    "control",
                    options=[AUTO, *control_choices()],
                    default=AUTO,
                    tooltip="From models/model_patches: EAM control weights, or a published model such as DiT4SR's "
                    "transformer folder. auto: the embedded one for the embedded model, else the one that fits the "
                    "checkpoint.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The base; LoRA and model patches go between here and EAM Apply Control."),
                io.Clip.Output(
                    tooltip="The checkpoint's text encoders, where it holds them; the embedded model's knows no text."
                ),
                io.Vae.Output(tooltip="Encodes for EAM Apply Control and decodes the sampler's result."),
                ControlType.Output(display_name="control", tooltip="The control weights, for EAM Apply Control."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, control: str) -> list[tuple[str, int]]:
        """Load again when a control's files change, such as an embedding that was made since."""
        from .control_choices import file_times

        return [] if control == AUTO else file_times(control)

    @classmethod
    def execute(cls, checkpoint: str, control: str) -> io.NodeOutput:
        """Load the base, then the control weights that fit it."""
        from .checkpoints import control_path, load_base
        from .patcher import load_control

        model, clip, vae = load_base(checkpoint)
        return io.NodeOutput(model, clip, vae, load_control(control_path(control, checkpoint, model)))
