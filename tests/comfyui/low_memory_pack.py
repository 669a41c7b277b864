"""What --novram does on a GPU, on the CPU: weights stay where they are and are cast as each layer runs.

Core takes a CPU for a device that needs no offloading, so this does what it does elsewhere. On a GPU, layers that core
cannot cast and did not load would be left on the CPU: they are named in the log.
"""

import logging

from comfy.model_management import LoadedModel

NODE_CLASS_MAPPINGS = {}
load_model = LoadedModel.model_load


def load_little(self, lowvram_model_memory=0, force_patch_weights=False):
    result = load_model(self, 0.1, force_patch_weights)
    network = self.model.model
    for name, module in network.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not (hasattr(module, "comfy_cast_weights") or getattr(module, "comfy_patched_weights", False)):
            logging.info(f"left behind: {type(network).__name__}: {name}")
    return result


LoadedModel.model_load = load_little
