"""Nodes that dit4sr_graph.py puts into its ComfyUI: inputs from a file, one forward pass, patches of other packs."""

import comfy.model_management
import torch
from comfy.conds import CONDNoiseShape
from safetensors.torch import load_file


class Node:
    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {name: (kind, {}) for name, kind in cls.INPUTS.items()}}


class Velocity(Node):
    """What a MODEL's network predicts for the inputs of a file, through everything that is patched around it."""

    INPUTS, RETURN_TYPES = {"model": "MODEL", "file": "STRING"}, ("LATENT",)

    def run(self, model, file):
        given = load_file(file)
        comfy.model_management.load_models_gpu([model, *model.model_patches_models()])
        x, sigma = given["inputs.latent"], given["inputs.timestep"] / 1000
        with torch.no_grad():
            denoised = model.model.apply_model(
                x,
                sigma,
                c_crossattn=given["inputs.text"],
                transformer_options={**model.model_options["transformer_options"], "wrappers": model.wrappers},
                y=given["inputs.pooled"],
                eam_lr=given["inputs.lr_latent"],
            )
        return ({"samples": (x - denoised) / sigma[:, None, None, None]},)


class FileCond(Node):
    """Text of a file; `lr` is a key in it, or empty for what EAM_ApplyControl adds."""

    INPUTS, RETURN_TYPES = {"file": "STRING", "text": "STRING", "pooled": "STRING"}, ("CONDITIONING",)

    def run(self, file, text, pooled):
        given = load_file(file)
        return ([(given[text], {"pooled_output": given[pooled]})],)


class FileLR(Node):
    INPUTS, RETURN_TYPES = {"conditioning": "CONDITIONING", "file": "STRING", "key": "STRING"}, ("CONDITIONING",)

    def run(self, conditioning, file, key):
        lr = CONDNoiseShape(load_file(file)[key])
        return ([(text, {**extra, "model_conds": {"eam_lr": lr}}) for text, extra in conditioning],)


class FileNoise(Node):
    INPUTS, RETURN_TYPES = {"file": "STRING", "key": "STRING"}, ("NOISE",)

    def run(self, file, key):
        self.seed, self.noise = 0, load_file(file)[key]
        return (self,)

    def generate_noise(self, latent):
        return self.noise


class OthersPatch(Node):
    """A patch of block 0 as other packs make them: it changes the block's input, or leaves the block out."""

    INPUTS, RETURN_TYPES = {"model": "MODEL", "does": "STRING"}, ("MODEL",)

    def run(self, model, does):
        def patch(args, extra):
            if does == "skip":
                return {"img": args["img"], "txt": args["txt"]}
            return extra["original_block"]({**args, "img": 1.5 * args["img"]})

        patched = model.clone()
        patched.set_model_patch_replace(patch, "dit", "double_block", 0)
        return (patched,)


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in Node.__subclasses__()}
