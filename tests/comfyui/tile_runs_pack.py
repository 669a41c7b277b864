"""Nodes that tile_runs_graph.py puts into its ComfyUI: a MODEL in trouble, and what is kept of LR latents."""

import json
import sys
from pathlib import Path

import torch


def pack_module(name):
    """Return a module of the pack under test, whatever name core gave it."""
    return next(module for key, module in sys.modules.items() if key.endswith(name) and key != name)


class Node:
    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {name: (kind, {}) for name, kind in cls.INPUTS.items()}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")


class Trouble(Node):
    """Write every pass down, and fail where `fails` says.

    It is JSON: "larger": no memory for tiles of a larger side; "more": nor for more tiles than this; "once": one
    failure, at this pass; "nan": the result of these passes is NaN; "nan_half": it is in everything but float32;
    "interrupt": stop at this pass.
    """

    INPUTS, RETURN_TYPES = {"model": "MODEL", "log": "STRING", "fails": "STRING"}, ("MODEL",)

    def run(self, model, log, fails):
        fails, count = json.loads(fails), 0

        def call(apply, options):
            nonlocal count
            count += 1
            tiles, base = options["input"], apply.__self__
            dtype = base.manual_cast_dtype or base.get_dtype()
            with Path(log).open("a") as lines:
                print(json.dumps({"num": len(tiles), "side": tiles.shape[-1], "dtype": str(dtype)}), file=lines)
            sides = tiles.shape[-1] > fails.get("larger", 10**6)
            if sides or len(tiles) > fails.get("more", 10**6) or count == fails.get("once"):
                raise torch.OutOfMemoryError("tried to allocate 2 GiB")
            if count == fails.get("interrupt"):
                import comfy.model_management

                comfy.model_management.interrupt_current_processing()
            result = apply(tiles, options["timestep"], **options["c"])
            if count in fails.get("nan", []) or (fails.get("nan_half") and dtype != torch.float32):
                result[-1, 0, 0, 0] = float("nan")
            return result

        troubled = model.clone()
        troubled.set_model_unet_function_wrapper(call)
        return (troubled,)


class Half(Node):
    """Make the weights of a MODEL bfloat16 for good, as core has them where a device likes them."""

    INPUTS, RETURN_TYPES = {"model": "MODEL"}, ("MODEL",)

    def run(self, model):
        network = model.model.diffusion_model.to(torch.bfloat16)
        network.dtype = torch.bfloat16
        return (model,)


class Remembering(Node):
    """Allow so many bytes to be kept of LR latents, and write down how many of them are made keys and values."""

    INPUTS, RETURN_TYPES = {"model": "MODEL", "log": "STRING", "most": "INT"}, ("MODEL",)

    def run(self, model, log, most):
        stream = pack_module("eam_core.model.control").ControlStream
        own = getattr(stream.remember, "own", stream.remember)

        def remember(control, lr_latents, host):
            with Path(log).open("a") as lines:
                print(json.dumps({"remembered": len(lr_latents)}), file=lines)
            return own(control, lr_latents, host)

        remember.own = own
        stream.remember = remember
        pack_module("nodes.lr_memory").MOST_BYTES = most
        return (model,)


NODE_CLASS_MAPPINGS = {f"Test{kind.__name__}": kind for kind in Node.__subclasses__()}
