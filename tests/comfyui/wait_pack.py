"""A node for tests of stops: it takes its time, and looks for interrupts as samplers do."""

import time

from comfy.model_management import throw_exception_if_processing_interrupted


class TestWait:
    FUNCTION, CATEGORY, RETURN_TYPES = "run", "test", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "seconds": ("FLOAT",)}}

    def run(self, image, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        return (image,)


NODE_CLASS_MAPPINGS = {"TestWait": TestWait}
