"""Nodes that comfy_memory.py puts into its ComfyUI: SD3's VAE, a text of zeros, and the GPU memory taken at most."""

import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.model import Decoder, Encoder

VAE_SIZES = {"z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4]}
VAE_SIZES |= {"num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0, "double_z": True}


class RandomVAE:
    """SD3's VAE with random weights, as core loads it."""

    FUNCTION, CATEGORY, RETURN_TYPES = "run", "bench", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        parts = {"encoder": Encoder(**VAE_SIZES), "decoder": Decoder(**VAE_SIZES)}
        weights = {
            f"{name}.{key}": 0.02 * torch.randn_like(value)
            for name, part in parts.items()
            for key, value in part.state_dict().items()
        }
        return (comfy.sd.VAE(sd=weights),)


class ZeroText:
    """CONDITIONING as SD3's text encoders shape it."""

    FUNCTION, CATEGORY, RETURN_TYPES = "run", "bench", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"tokens": ("INT", {}), "channels": ("INT", {}), "pooled": ("INT", {})}}

    def run(self, tokens, channels, pooled):
        return ([[torch.zeros(1, tokens, channels), {"pooled_output": torch.zeros(1, pooled)}]],)


class PeakMemory:
    """Bytes that torch has reserved on the GPU at most, once the image is there; -1 without one."""

    FUNCTION, CATEGORY, RETURN_TYPES, OUTPUT_NODE = "run", "bench", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE", {})}}

    def run(self, image):
        peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else -1
        return {"ui": {"peak": [peak], "size": [image.shape[2], image.shape[1]]}}


NODE_CLASS_MAPPINGS = {
    "Bench_RandomVAE": RandomVAE,
    "Bench_ZeroText": ZeroText,
    "Bench_PeakMemory": PeakMemory,
}
