"""The host's queue: which prompt runs, how an earlier one ended, and queueing the running one again.

Everything happens on the server, so a folder goes on with the browser closed and with clients of the API.
"""

import copy
import logging
import time
import uuid
from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..eam_core.folder_batch import Outcome

# Runs queued here whose history is kept; the browser lists 64 runs unless told otherwise.
KEPT_RUNS = 64


class RunQueue:
    """Queue the running prompt again, once however many nodes of it ask."""

    def __init__(self) -> None:
        self._next: dict[str, str] = {}
        # By the id of a prompt queued here: that of the prompt that ran then; oldest first.
        self._queued: dict[str, str] = {}

    def running(self) -> str:
        """Return the id of the prompt that runs the calling node; empty if the host does not say."""
        context = get_executing_context()
        return str(context.prompt_id) if context and context.prompt_id else ""

    def was_queued_here(self, prompt_id: str) -> bool:
        """Tell whether a prompt is one that `again` queued."""
        return prompt_id in self._queued

    def was_interrupted_before(self, prompt_id: str) -> bool:
        """Tell whether the run that queued this prompt ended with Cancel."""
        before = self._queued.get(prompt_id)
        ended = self.outcome(before) if before else None
        return ended is not None and ended[0] == "interrupted"

    def is_waiting(self, prompt_id: str) -> bool:
        """Tell whether a prompt is still to run."""
        queue = _queue()
        with queue.mutex:
            return any(item[1] == prompt_id for item in queue.queue)

    def again(self, prompt_id: str) -> str:
        """Queue a running prompt once more, behind what waits, with everything that came with it.

        Args:
            prompt_id: of the running prompt.

        Returns:
            The new prompt's id; empty if the host does not list the running one.
        """
        if prompt_id in self._next:
            return self._next[prompt_id]
        queue = _queue()
        with queue.mutex:
            item = next((item for item in queue.currently_running.values() if item[1] == prompt_id), None)
            if item is None:
                return ""
            new_id = str(uuid.uuid4())
            # Later versions of ComfyUI may carry more behind the first four: it goes along unread.
            queue.put((_number_behind(item[0]), new_id, *(_fresh(part) for part in item[2:])))
        self._next = {prompt_id: new_id}
        self._queued[new_id] = prompt_id
        self._forget_old()
        return new_id

    def outcome(self, prompt_id: str) -> tuple[Outcome, str] | None:
        """Tell how a prompt ended, and its error in one line; None while it waits or runs."""
        queue = _queue()
        with queue.mutex:
            entry = queue.history.get(prompt_id)
            open_items = [*queue.currently_running.values(), *queue.queue]
            if entry is None:
                return None if any(item[1] == prompt_id for item in open_items) else ("unknown", "")
            status = dict(entry.get("status") or {})
        for event, data in reversed(status.get("messages") or []):
            if event == "execution_interrupted":
                return "interrupted", ""
            if event == "execution_error":
                return "failed", f"{data.get('node_type')}: {str(data.get('exception_message')).strip()}"
        return ("success" if status.get("status_str") == "success" else "unknown"), ""

    def _forget_old(self) -> None:
        """Drop the oldest runs queued here from the history, which would otherwise grow with the folder."""
        while len(self._queued) > KEPT_RUNS:
            oldest = next(iter(self._queued))
            del self._queued[oldest]
            _queue().delete_history_item(oldest)


def show_text(node_id: str, text: str) -> None:
    """Show a line on a node in the browser that queued the running prompt."""
    server = PromptServer.instance
    if server.client_id is None or not hasattr(server, "send_progress_text"):
        return
    # The browser takes this text for HTML, and [[a|b]] for a link.
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("[[", "[ [")
    try:
        # Names of files may hold bytes that are no text.
        server.send_progress_text(plain.encode("utf-8", "replace").decode(), node_id, server.client_id)
    except Exception as error:  # a line on a node must not cost a picture
        logging.debug(f"EAM: cannot show progress as text: {error}")


def _queue() -> Any:
    return PromptServer.instance.prompt_queue


def _number_behind(number: float) -> float:
    """Return a place at the end of the queue, but not before the one the prompt had."""
    server = PromptServer.instance
    server.number += 1
    return max(server.number - 1, number)


def _fresh(part: Any) -> Any:
    """Copy a part of a queue item without what its run wrote into it."""
    part = copy.deepcopy(part)
    if isinstance(part, dict):
        if "create_time" in part:
            part["create_time"] = int(time.time() * 1000)
        for node in part.values():
            if isinstance(node, dict):
                node.pop("is_changed", None)
    return part
