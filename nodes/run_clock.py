"""What a run took so far: seconds, nodes that ran and nodes that came from the cache, peak memory.

ComfyUI keeps the start of a run to itself. But before any node runs it asks the nodes of the prompt for fingerprints
of their inputs; then a clock goes among the handlers of the run's progress, which hear of each node that starts. Core
drops it with the run.
"""

import sys
import time

import comfy.model_management
import torch
from comfy_execution.graph_utils import is_link
from comfy_execution.progress import NodeProgressState, ProgressHandler, add_progress_handler, get_progress_state
from comfy_execution.utils import get_executing_context

from ..eam_core.report_text import Cost

_NAME = "eam_run_clock"


class RunClock(ProgressHandler):
    """Note when a run began and which nodes ran in it."""

    def __init__(self) -> None:
        super().__init__(_NAME)
        self.start, self.ran = time.perf_counter(), set[str]()

    def start_handler(self, node_id: str, state: NodeProgressState, prompt_id: str) -> None:
        """Note that a node runs; cached ones never do."""
        self.ran.add(node_id)


def start_clock() -> None:
    """Start the clock of the run that begins, unless it goes already, and forget peaks of earlier runs."""
    if _NAME in get_progress_state().handlers:
        return
    device = _gpu()
    if device is not None:
        torch.cuda.reset_peak_memory_stats(device)
    add_progress_handler(RunClock())


def cost_so_far() -> Cost:
    """Return what the run took up to the node that now runs."""
    clock = get_progress_state().handlers.get(_NAME)
    before = _nodes_before()
    ran = before if clock is None else before & clock.ran
    device = _gpu()
    since = "in this run" if clock else "since ComfyUI started"
    return Cost(
        seconds=None if clock is None else time.perf_counter() - clock.start,
        num_ran=len(ran),
        num_cached=len(before - ran),
        peak_bytes=_process_peak() if device is None else torch.cuda.max_memory_allocated(device),
        peak_of="main memory, by ComfyUI's process since it started" if device is None else f"GPU memory {since}",
        peak_is_of_run=device is not None and clock is not None,
    )


def _nodes_before() -> set[str]:
    """Return the ids of all nodes that the running one depends on."""
    context, prompt = get_executing_context(), get_progress_state().dynprompt
    found: set[str] = set()
    left = [] if context is None else [context.node_id]
    while left:
        inputs = prompt.get_node(left.pop())["inputs"].values()
        new = {value[0] for value in inputs if is_link(value)} - found
        found |= new
        left += [node for node in new if prompt.has_node(node)]
    return found


def _gpu() -> torch.device | None:
    """Return the device that models run on, where torch counts its memory."""
    device = comfy.model_management.get_torch_device()
    return device if device.type == "cuda" else None


def _process_peak() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
