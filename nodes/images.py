"""Nodes on pictures alone: colour fix, degradation for tests."""

import torch
from comfy.utils import repeat_to_batch_size
from comfy_api.latest import io
from torch import Tensor

from ..eam_core.presets import EMBEDDED
from .types import schema, to_core, to_host


class ColorFix(io.ComfyNode):
    """EAM_ColorFix."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "color match",
                "colour match",
                "color correction",
                "color transfer",
                "wavelet",
                "AdaIN",
                "LAB",
            ],
            node_id="EAM_ColorFix",
            display_name="EAM Color Fix",
            description="Gives a restored image the colors of its low-resolution original and keeps its detail.",
            inputs=[
                io.Image.Input("image", tooltip="The restored image."),
                io.Image.Input("reference", tooltip="The original; it is enlarged to the image's size."),
                io.Combo.Input(
                    "method",
                    options=["wavelet", "adain", "lab", "none"],
                    default=EMBEDDED.color_fix,
                    tooltip="wavelet: the original's coarse colors and brightness. adain: its mean and contrast. "
                    "lab: its coarse hue only, brightness stays. none: no change. DiT4SR: adain.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The restored image in the original's colors.")],
        )

    @classmethod
    def execute(cls, image: Tensor, reference: Tensor, method: str) -> io.NodeOutput:
        """Fix the colours of each image in the batch."""
        from ..eam_core.color import color_fix_in_place
        from ..eam_core.images import resize

        restored = to_core(image)
        enlarged = resize(repeat_to_batch_size(to_core(reference), len(restored)), restored.shape[-2:])
        return io.NodeOutput(to_host(color_fix_in_place(restored.clone(), enlarged, method)))


class Degrade(io.ComfyNode):
    """EAM_Degrade."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        return schema(
            search_aliases=[
                "make low resolution",
                "downscale",
                "blur",
                "add noise",
                "JPEG artifacts",
                "Real-ESRGAN degradation",
            ],
            node_id="EAM_Degrade",
            display_name="EAM Degrade",
            description="Makes a low-resolution test input from a clean photo: blur, reduction, noise, JPEG.",
            inputs=[
                io.Image.Input("image", tooltip="A clean photo or a batch of them."),
                io.Int.Input("scale", default=4, min=1, max=8, tooltip="Each side shrinks by this factor."),
                io.Float.Input(
                    "blur",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip="Gaussian blur in pixels of the input. Used by the preset custom only.",
                ),
                io.Float.Input(
                    "noise",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Gaussian noise in grey levels of 255. Used by the preset custom only.",
                ),
                io.Int.Input(
                    "jpeg_quality",
                    default=100,
                    min=1,
                    max=100,
                    tooltip="100 leaves JPEG out. Used by the preset custom only.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Of the noise and of a preset's draws: the same seed gives the same result.",
                ),
                io.Combo.Input(
                    "preset",
                    options=["custom", "plain", "light", "stock"],
                    default="custom",
                    optional=True,
                    tooltip="custom: blur, noise and jpeg_quality as set here. plain: bicubic reduction alone. "
                    "light, stock: random blur, resizing, noise and JPEG, twice, as blind super-resolution trains on; "
                    "each image draws its own from seed, seed + 1, ...",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The low-resolution image, rounded to 8-bit levels.")],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        scale: int,
        blur: float,
        noise: float,
        jpeg_quality: int,
        seed: int,
        preset: str = "custom",
    ) -> io.NodeOutput:
        """Degrade each image: all alike but for the noise, or by a preset with parameters of its own."""
        from ..eam_core.degradation import PRESETS, degrade, simple_degrade

        if preset != "custom":
            seeds = range(seed, seed + len(image))
            return io.NodeOutput(to_host(degrade(to_core(image), scale, PRESETS[preset], seeds)))
        generator = torch.Generator().manual_seed(seed)
        settings = {"blur_sigma": blur, "noise_sigma": noise, "jpeg_quality": jpeg_quality}
        return io.NodeOutput(to_host(simple_degrade(to_core(image), scale, **settings, generator=generator)))
