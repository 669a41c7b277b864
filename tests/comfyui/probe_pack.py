"""Nodes that tests put into their ComfyUI: the noise levels of a schedule, and patches as others make them."""

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper


class Node:
    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {name: (kind, {}) for name, kind in cls.INPUTS.items()}}


class Sigmas(Node):
    """Noise levels of a MODEL as a LATENT [1, 1, 1, steps + 1], which can be saved."""

    INPUTS, RETURN_TYPES = {"sigmas": "SIGMAS"}, ("LATENT",)

    def run(self, sigmas):
        return ({"samples": sigmas[None, None, None]},)


class Skipped(Node):
    """Skip one block in every pass, with what stood around it, as skip-layer guidance does in its own."""

    INPUTS, RETURN_TYPES = {"model": "MODEL", "layer": "INT"}, ("MODEL",)

    def run(self, model, layer):
        patched = model.clone()
        patched.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", layer)
        return (patched,)


class Compiled(Node):
    """TorchCompileModel's own call with a backend of choice."""

    INPUTS, RETURN_TYPES = {"model": "MODEL", "backend": "STRING"}, ("MODEL",)

    def run(self, model, backend):
        torch._dynamo.reset()
        patched = model.clone()
        set_torch_compile_wrapper(model=patched, backend=backend)
        return (patched,)


NODE_CLASS_MAPPINGS = {f"Test{kind.__name__}": kind for kind in Node.__subclasses__()}
