"""Nodes that test_upscale.py puts into its ComfyUI: text encoders that tell texts apart, pictures to the last digit."""

import importlib
import json
import sys
from types import SimpleNamespace

import comfy.sd
import torch
from comfy.supported_models_base import ClipTarget


class Node:
    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {name: (kind, {}) for name, kind in cls.INPUTS.items()}}


class Tokenizer:
    def __init__(self, **_):
        pass

    def tokenize_with_weights(self, text, return_word_ids=False, **_):
        return {"text": text}


class Encoder(torch.nn.Module):
    """Draws tokens for a text from its letters."""

    dtypes = (torch.float32,)

    def __init__(self, pooled_size, **_):
        super().__init__()
        self.pooled_size = pooled_size

    def encode_token_weights(self, tokens):
        generator = torch.Generator().manual_seed(sum(map(ord, tokens["text"])))
        context = torch.randn(1, 8, 64, generator=generator)
        return context, torch.randn(1, self.pooled_size, generator=generator)

    def set_clip_options(self, options):
        pass

    def reset_clip_options(self):
        pass


class Words(Node):
    """A CLIP for a base with text tokens of 64 channels."""

    INPUTS, RETURN_TYPES = {"pooled_size": "INT"}, ("CLIP",)

    def run(self, pooled_size):
        target = ClipTarget(Tokenizer, Encoder)
        target.params = {"pooled_size": pooled_size}
        return (comfy.sd.CLIP(target),)


class Exact(Node):
    """An IMAGE as a LATENT, which is saved without rounding."""

    INPUTS, RETURN_TYPES = {"image": "IMAGE"}, ("LATENT",)

    def run(self, image):
        return ({"samples": image.movedim(-1, 1).contiguous()},)


class Apart(Node):
    """The pictures of a batch as a list, one after the other."""

    INPUTS, RETURN_TYPES, OUTPUT_IS_LIST = {"image": "IMAGE"}, ("IMAGE",), (True,)

    def run(self, image):
        return (list(image.split(1)),)


class Expansion(Node):
    """The graph that EAM_Upscale makes of a picture of some size, as JSON; nothing of it runs."""

    INPUTS, RETURN_TYPES = {"width": "INT", "height": "INT", "scale": "FLOAT", "embedded": "BOOLEAN"}, ("STRING",)

    def run(self, width, height, scale, embedded):
        (pack,) = [name for name in sys.modules if name.endswith("ComfyUI-EAM")]
        made, presets = (
            importlib.import_module(f"{pack}.{name}") for name in ("nodes.upscale_graph", "eam_core.presets")
        )
        parts = {"model": SimpleNamespace(model=None), "clip": True, "vae": True}
        parts |= {"control": SimpleNamespace(spec=presets.SD3)}
        settings = made.Settings.of({"scale": scale} | ({} if embedded else parts))
        inputs = {name: ["1", 0] for name in ("image", *parts)}
        prompt = SimpleNamespace(get_node=lambda name: {"class_type": "EmptyImage", "inputs": inputs if name else {}})
        graph, *_ = made.expand(torch.zeros(1, height, width, 3), made.Links(prompt, "0"), settings)
        return (json.dumps({name.rsplit(".", 1)[-1]: node for name, node in graph.items()}),)


NODE_CLASS_MAPPINGS = {f"Test{kind.__name__}": kind for kind in (Words, Exact, Apart, Expansion)}
