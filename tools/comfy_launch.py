"""Run a ComfyUI's main.py in this process: python comfy_launch.py COMFYUI_FOLDER [ComfyUI's options].

Two things differ from starting main.py directly: the process ends with the one that started it, and on the CPU
torchvision can be imported although its compiled operators do not fit the installed torch.
"""

import importlib.util
import os
import runpy
import sys
import threading
from contextlib import suppress
from pathlib import Path


def end_with_parent() -> None:
    """End this process when the other end of standard input closes, however the parent ended."""

    def wait() -> None:
        # Not through sys.stdin, whose lock would make an ordinary exit fail.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def define_missing_operators() -> None:
    """Declare the operators torchvision registers shapes for at import, if its library cannot be loaded.

    ComfyUI calls none of them; without the declaration `import torchvision` itself fails.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C.*"):
        with suppress(OSError):
            torch.ops.load_library(library)
    if hasattr(torch.ops.torchvision, "nms"):
        return
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # The declarations live as long as this object.
    define_missing_operators.keep_alive = operators  # type: ignore[attr-defined]


if __name__ == "__main__":
    root = sys.argv[1]
    end_with_parent()
    if "--cpu" in sys.argv:
        define_missing_operators()
    main = os.path.join(root, "main.py")
    sys.argv = [main, *sys.argv[2:]]
    sys.path[0] = root
    runpy.run_path(main, run_name="__main__")
