"""Nodes for tests of stops: one takes its time, and looks for interrupts as samplers do; others give bad results."""

import errno
import os
import time

from comfy.model_management import throw_exception_if_processing_interrupted

HELD = 2.0  # seconds; long enough for a test to see where the folder is, on a busy machine too


class TestWait:
    FUNCTION, CATEGORY, RETURN_TYPES = "run", "test", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        index = ("INT", {"default": 0})
        return {"required": {"image": ("IMAGE",), "seconds": ("FLOAT",)}, "optional": {"index": index, "held": index}}

    def run(self, image, seconds, index=0, held=0):
        end = time.monotonic() + (HELD if held and index == held else seconds)
        while time.monotonic() < end:
            throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        return (image,)


class TestFullDisk:
    FUNCTION, CATEGORY, RETURN_TYPES = "run", "test", ("IMAGE",)
    fsync = staticmethod(os.fsync)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "index": ("INT",), "full_at": ("INT",)}}

    def run(self, image, index, full_at):
        os.fsync = full if index == full_at else self.fsync
        return (image,)


class TestBadResult:
    FUNCTION, CATEGORY, RETURN_TYPES = "run", "test", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "index": ("INT",)}}

    def run(self, image, index):
        return ({2: image * float("nan"), 3: image[:0]}.get(index, image),)


def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")


NODE_CLASS_MAPPINGS = {"TestWait": TestWait, "TestFullDisk": TestFullDisk, "TestBadResult": TestBadResult}
