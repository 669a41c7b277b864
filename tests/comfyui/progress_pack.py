"""Nodes that test_progress.py puts into its ComfyUI: core's preview setting, and a MODEL that counts its tiles."""

import time
from pathlib import Path

import comfy.model_management
import comfy.samplers
from comfy.cli_args import LatentPreviewMethod, args


class Node:
    FUNCTION, CATEGORY, RETURN_TYPES = "run", "test", ("MODEL",)

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")


class PreviewMethod(Node):
    """Switch core's previews for everything that uses this MODEL."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "method": ("STRING", {})}}

    def run(self, model, method):
        args.preview_method = LatentPreviewMethod(method)
        return (model,)


class CountTiles(Node):
    """Write one line per pass of the network into a file, take some time for each, and interrupt at one of them."""

    @classmethod
    def INPUT_TYPES(cls):
        numbers = {"seconds": ("FLOAT", {"default": 0.0}), "interrupt_at": ("INT", {"default": 0})}
        return {"required": {"model": ("MODEL",), "path": ("STRING", {}), **numbers}}

    def run(self, model, path, seconds, interrupt_at):
        file, count = Path(path), 0

        def call(apply, options):
            nonlocal count
            count += 1
            with file.open("a") as lines:
                lines.write(f"{options['input'].shape[0]}\n")
            time.sleep(seconds)
            if count == interrupt_at:
                comfy.model_management.interrupt_current_processing()
            return apply(options["input"], options["timestep"], **options["c"])

        counting = model.clone()
        counting.set_model_unet_function_wrapper(call)
        return (counting,)


NODE_CLASS_MAPPINGS = {"TestPreviewMethod": PreviewMethod, "TestCountTiles": CountTiles}
