"""EAM_ApplyControl: enlarge the picture, encode it, and let it steer a MODEL through its conditioning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .types import ControlType, schema, to_core

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE
    from torch import Tensor

    from .conditioning import Conditioning
    from .patcher import Control


class ApplyControl(io.ComfyNode):
    """EAM_ApplyControl."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "SUPIR encode",
                "apply ControlNet tile",
                "tile ControlNet",
                "super resolution",
                "upscale image",
                "restore photo",
                "image conditioning",
            ],
            node_id="EAM_ApplyControl",
            display_name="EAM Apply Control",
            description="Enlarges a low-resolution image and lets it control an SD3 model. Works with EAM Tiled "
            "Sampler and with KSampler. Sides of the result are multiples of 8.",
            inputs=[
                io.Model.Input("model", tooltip="An SD3-family base of the size that the control was trained on."),
                io.Conditioning.Input("positive", tooltip="The prompt that says what the image shows."),
                io.Conditioning.Input("negative", tooltip="What the result should not look like. Unused at cfg 1."),
                io.Vae.Input("vae", tooltip="The base's VAE, with 16 latent channels; it encodes the enlarged image."),
                ControlType.Input("control", tooltip="From EAM Load Model or EAM Control Settings."),
                io.Image.Input("image", tooltip="The low-resolution image or batch."),
                io.Float.Input(
                    "scale",
                    default=4.0,
                    min=1.0,
                    max=8.0,
                    step=0.25,
                    tooltip="Each side of the result is this many times the image's, to the nearest multiple of 8. "
                    "1 restores without enlarging.",
                ),
                io.Float.Input(
                    "control_scale",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Strength of the control: 1 as trained, 0 the base alone.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the sampling after which the control sets in. 0: from the first step.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the sampling after which the control stops. 1: up to the last step.",
                ),
                io.Float.Input(
                    "encoder_noise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="For controls that start from the image itself (TSD-SR): 1 draws from what the VAE allows, "
                    "with the sampler's seed; 0 takes its mean.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the control around its blocks; the one that came in stays."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the image's latents in it."),
                io.Conditioning.Output(display_name="negative", tooltip="The same for the negative prompt."),
                io.Latent.Output(tooltip="The enlarged image; a sampler may start from it."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: Conditioning,
        negative: Conditioning,
        vae: VAE,
        control: Control,
        image: Tensor,
        scale: float,
        control_scale: float,
        start: float,
        end: float,
        encoder_noise: float = 1.0,
    ) -> io.NodeOutput:
        """Check what fits first: encoding takes time."""
        from .conditioning import encode_start, enlarge, with_lr
        from .patcher import apply_control
        from .weight_patches import set_start

        patched = apply_control(model, control, control_scale, start, end)
        latents, spread = encode_start(vae, enlarge(to_core(image), scale, control.spec), control)
        set_start(patched, control.spec, latents, None if spread is None else encoder_noise * spread)
        lr = patched.get_model_object("latent_format").process_in(latents)
        return io.NodeOutput(patched, with_lr(positive, lr), with_lr(negative, lr), {"samples": latents})
