"""ComfyUI's door to the nodes. Nothing is imported until ComfyUI asks for them.

An older ComfyUI gets no nodes, and one sentence in its log that says why.
"""

import importlib.util
import logging
import re
import sys

LOWEST_COMFYUI = "0.3.75"


def _number(version):
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else None


def _has_node_api():
    try:
        return "comfy_api.latest" in sys.modules or importlib.util.find_spec("comfy_api.latest") is not None
    except ImportError:
        return False


def _what_is_missing():
    """Return what the running ComfyUI is, if it is too old for the nodes; else, or without a ComfyUI, nothing."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        # ComfyUI did not have this file at first. All of them have folder_paths by now, nothing else does.
        return "an older one without a version number" if "folder_paths" in sys.modules else ""
    number = _number(str(version))
    if number is not None and number < _number(LOWEST_COMFYUI):
        return version
    return "" if _has_node_api() else f"{version} without comfy_api.latest"


_found = _what_is_missing()
if _found:
    logging.warning(f"EAM: expected ComfyUI {LOWEST_COMFYUI} or newer, got {_found}; update ComfyUI to get the nodes.")
    # Every ComfyUI looks for these first and is content; one that knows no entry point would complain without them.
    NODE_CLASS_MAPPINGS = {}
else:
    WEB_DIRECTORY = "./web"

    async def comfy_entrypoint():
        """Return the extension that lists the nodes."""
        from .nodes import EAMExtension

        return EAMExtension()
