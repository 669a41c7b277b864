"""What soaks look at from inside ComfyUI: a picture's digest, and what the process holds once garbage is gone."""

import ctypes
import gc
import hashlib
import os
from collections import Counter

import torch
from aiohttp import web
from comfy.model_management import current_loaded_models
from comfy.model_patcher import ModelPatcher
from server import PromptServer


class Digest:
    """Say in a hash what a picture holds, to the bit."""

    FUNCTION, CATEGORY, RETURN_TYPES, OUTPUT_NODE = "run", "test", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image):
        data = image.contiguous().cpu().numpy().tobytes()
        return {"ui": {"digest": [hashlib.sha256(data).hexdigest()[:16]], "shape": [list(image.shape)]}}


class Leak:
    """Keep four megabytes with each run, so that a test can tell whether leaks are seen."""

    FUNCTION, CATEGORY, RETURN_TYPES, OUTPUT_NODE = "run", "test", (), True
    kept = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"number": ("INT",)}}

    def run(self, number):
        Leak.kept += (torch.ones(2**20),)
        return {}


def memory():
    """Return bytes and counts; pages that the allocator keeps for later go back first, as they are no leak."""
    untidied = resident()
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    objects = gc.get_objects()
    tensors = dict(storage(one) for one in objects if on_cpu(one))
    packs = Counter(type(one).__qualname__ for one in objects if "ComfyUI-EAM" in str(type(one).__module__))
    return {
        "resident": untidied,
        "tidied": resident(),
        "objects": len(objects),
        "tensor_bytes": sum(tensors.values()),
        "tensors": len(tensors),
        "patchers": sum(is_a(one, ModelPatcher) for one in objects),
        "loaded": len(current_loaded_models),
        "pack_objects": sum(packs.values()),
        "pack_types": dict(packs.most_common(12)),
    }


def on_cpu(one):
    return is_a(one, torch.Tensor) and one.device.type == "cpu"


def storage(tensor):
    """Return place and bytes; a tensor of torch.compile's tracing, which test files before this one leave, has none."""
    try:
        return tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
    except RuntimeError:
        return 0, 0


def is_a(one, kind):
    try:
        return isinstance(one, kind)
    except ReferenceError:  # a proxy of what is gone
        return False


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@PromptServer.instance.routes.get("/eam_soak/memory")
async def memory_route(request):
    return web.json_response(memory())


NODE_CLASS_MAPPINGS = {"TestDigest": Digest, "TestLeak": Leak}
