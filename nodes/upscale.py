"""EAM_Upscale: a whole restoration as one node, which puts the pack's other nodes in its place when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.samplers
from comfy_api.latest import io

from .types import AUTO, CaptionerType, ControlType, advanced, schema

if TYPE_CHECKING:
    from torch import Tensor

_ALIASES = [
    "upscale", "super resolution", "restore photo", "enhance", "4x", "SUPIR", "SeedVR2", "Ultimate SD Upscale",
    "TiledDiffusion", "CCSR", "StableSR", "DiT4SR", "TSD-SR", "image upscaler", "hires fix",
]  # fmt: skip


class Upscale(io.ComfyNode):
    """EAM_Upscale."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs: what everybody sets, then sockets, then what is folded away."""
        return schema(
            node_id="EAM_Upscale",
            display_name="EAM Upscale",
            description="Restores and enlarges a photo: loading, prompt, control, tiled sampling, decoding and colors "
            "in one node. With nothing connected but the image it uses the small embedded model; connect model, clip, "
            "vae and control of EAM Load Model for an SD3 model with its control. Settings at 0 or auto are those of "
            "the control's authors.",
            search_aliases=_ALIASES,
            enable_expand=True,
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[*_visible(), *_sockets(), *map(advanced, _folded())],
            outputs=[
                io.Image.Output(tooltip="The restored photo."),
                io.String.Output(display_name="caption", tooltip="The prompt that was used."),
                io.Model.Output(display_name="model", tooltip="The model as it was sampled; for EAM Report."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, **settings: Any) -> io.NodeOutput:
        """Put the graph in this node's place; all the work is the other nodes'."""
        from .upscale_graph import Links, Settings, expand

        links = Links(cls.hidden.dynprompt, cls.hidden.unique_id)
        graph, *outputs = expand(image, links, Settings.of(settings))
        return io.NodeOutput(*outputs, expand=graph)


def _visible() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="The photo, or a batch of photos of one size."),
        io.Float.Input(
            "scale", default=4.0, min=1.0, max=8.0, step=0.25, tooltip="Enlargement; 1 restores at the same size."
        ),
        io.Float.Input(
            "fidelity",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="0 lets the model decide, 1 stays closest to the photo.",
        ),
        io.String.Input(
            "caption",
            multiline=True,
            default="",
            placeholder="what the photo shows; leave empty to ask a connected captioner",
            tooltip="Says what the photo is about. The embedded model and TSD-SR do not read it.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=False,
            tooltip="Of the noise. Another seed gives other details; the same seed gives the same picture.",
        ),
    ]


def _sockets() -> list[io.Input]:
    together = "Connect model, clip, vae and control together, or none of them for the embedded model."
    return [
        io.Model.Input("model", optional=True, tooltip=f"A model of the SD3 family. {together}"),
        io.Clip.Input("clip", optional=True, tooltip=f"Its text encoders. {together} TSD-SR may do without."),
        io.Vae.Input("vae", optional=True, tooltip=f"Its VAE. {together}"),
        ControlType.Input("control", optional=True, tooltip=f"Control weights trained for it. {together}"),
        CaptionerType.Input(
            "captioner",
            optional=True,
            lazy=True,
            tooltip="From EAM Load Captioner: writes the caption where it is left empty, and is not loaded otherwise. "
            "Of a batch it describes the first photo, for all.",
        ),
    ]


def _folded() -> list[io.WidgetInput]:
    size = {"default": 0, "min": 0, "step": 16, "optional": True}
    number = {"default": 0.0, "min": 0.0, "optional": True}
    share = {"default": 1.0, "min": 0.0, "step": 0.05, "optional": True}
    samplers, schedulers = [AUTO, *comfy.samplers.SAMPLER_NAMES], [AUTO, *comfy.samplers.SCHEDULER_NAMES]
    auto: dict[str, Any] = {"default": AUTO, "optional": True, "tooltip": "auto: what the control's authors use."}
    return [
        io.String.Input("negative", default="", optional=True, tooltip="What to avoid; counts where cfg is above 1."),
        io.Int.Input(
            "steps", default=0, min=0, max=1000, optional=True, tooltip="0: as many as the control's authors use."
        ),
        io.Float.Input("cfg", max=30.0, step=0.1, tooltip="0: what the control's authors use. 1: off.", **number),
        io.Combo.Input("sampler_name", options=samplers, **auto),
        io.Combo.Input("scheduler", options=schedulers, **auto),
        io.Float.Input(
            "start_sigma",
            max=1.0,
            step=0.01,
            tooltip="Share of noise to start from. 0: what the control's authors use. 1: pure noise.",
            **number,
        ),
        io.Float.Input("control_scale", max=2.0, tooltip="Strength of the control; 0 is the base alone.", **share),
        io.Int.Input("tile", max=4096, tooltip="In pixels of the result. 0: the size the model likes.", **size),
        io.Int.Input("overlap", max=2048, tooltip="In pixels of the result. 0: what the model likes.", **size),
        io.Int.Input(
            "tile_batch",
            default=0,
            min=0,
            max=64,
            optional=True,
            tooltip="Tiles at once; the result is the same. 0: as many as make it faster and fit into memory.",
        ),
        io.Combo.Input(
            "color_fix",
            options=[AUTO, "wavelet", "adain", "lab", "none"],
            default=AUTO,
            optional=True,
            tooltip="Gives the result the photo's colors, as EAM Color Fix. auto: what the control's authors use.",
        ),
        io.Float.Input(
            "encoder_noise",
            max=1.0,
            tooltip="For controls that start from the photo itself (TSD-SR): 1 draws from what the VAE allows, 0 takes "
            "its mean.",
            **share,
        ),
    ]
