"""Nodes that tsdsr_graph.py puts into its ComfyUI: core's VAE at the golden file's size, and what tests look at.

Core builds SD3's autoencoder at one size only, so this one is put together from core's own classes.
"""

import os

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine
from comfy.supported_models_base import ClipTarget
from safetensors.torch import load_file

GOLDEN = load_file(os.environ["EAM_GOLDEN_FILE"])


class TinyVAE(comfy.sd.VAE):
    def __init__(self):
        # Core chooses a network by keys. This one, of a single number, lets it set up everything else.
        super().__init__(sd={"pixel_space_vae": torch.ones(())}, dtype=torch.float32)
        prefix = "base/first_stage_model."
        state = {key[len(prefix) :]: value.float() for key, value in GOLDEN.items() if key.startswith(prefix)}
        width = state["encoder.conv_in.weight"].shape[0]
        widths = [state[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] // width for level in range(4)]
        sizes = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": width}
        sizes |= {"ch_mult": widths, "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
        parts = "comfy.ldm.modules.diffusionmodules.model"
        self.first_stage_model = AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": f"{parts}.Encoder", "params": sizes},
            decoder_config={"target": f"{parts}.Decoder", "params": sizes},
        ).eval()
        self.first_stage_model.load_state_dict(state)
        self.downscale_ratio = self.upscale_ratio = 8
        self.latent_channels = 16
        offload = comfy.model_management.vae_offload_device()
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=offload
        )


class Node:
    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {name: (kind, {}) for name, kind in cls.INPUTS.items()}}


class GoldenVAE(Node):
    INPUTS, RETURN_TYPES = {}, ("VAE",)

    def run(self):
        return (TinyVAE(),)


class GoldenCanvas(Node):
    """The authors' encoder input as an IMAGE."""

    INPUTS, RETURN_TYPES = {"case": "STRING"}, ("IMAGE",)

    def run(self, case):
        return ((GOLDEN[f"{case}/encoder_input"] / 2 + 0.5).movedim(1, -1),)


class Velocity(Node):
    """What a MODEL's network makes of the authors' latents, as core loads and patches it."""

    INPUTS, RETURN_TYPES = {"model": "MODEL", "conditioning": "CONDITIONING", "case": "STRING"}, ("LATENT",)

    def run(self, model, conditioning, case):
        comfy.model_management.load_models_gpu([model])
        device = model.load_device
        latents = GOLDEN[f"{case}/lr_latent"].to(device)
        context, extra = conditioning[0]
        sigma = torch.ones(len(latents), device=device)
        given = {"c_crossattn": context.to(device), "y": extra["pooled_output"].to(device)}
        with torch.no_grad():
            denoised = model.model.apply_model(latents, sigma, **given)
        return ({"samples": (latents - denoised).cpu()},)


class Tokenizer:
    def __init__(self, **_):
        pass

    def tokenize_with_weights(self, text, return_word_ids=False, tokenizer_options=None, **_):
        return {"text": text, "length": (tokenizer_options or {}).get("t5xxl_min_length", 0)}


class Encoder(torch.nn.Module):
    """Says of a text how long it is, and how many tokens were asked for."""

    dtypes = (torch.float32,)

    def __init__(self, **_):
        super().__init__()

    def encode_token_weights(self, tokens):
        return torch.full((1, tokens["length"], 64), float(len(tokens["text"]))), torch.zeros(1, 32)

    def set_clip_options(self, options):
        pass

    def reset_clip_options(self):
        pass


class TextCLIP(Node):
    INPUTS, RETURN_TYPES = {}, ("CLIP",)

    def run(self):
        target = ClipTarget(Tokenizer, Encoder)
        target.params = {}
        return (comfy.sd.CLIP(target),)


class CondAsLatent(Node):
    INPUTS, RETURN_TYPES = {"conditioning": "CONDITIONING"}, ("LATENT",)

    def run(self, conditioning):
        return ({"samples": conditioning[0][0][:, None]},)


NODE_CLASS_MAPPINGS = {
    f"Test{kind.__name__}": kind for kind in (GoldenVAE, GoldenCanvas, Velocity, TextCLIP, CondAsLatent)
}
