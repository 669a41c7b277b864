"""What the tests of EAM_SubjectCaption share: the graph around it, its kept answers, and the button that interrupts."""

import json
import time
from pathlib import Path
from typing import Any

import requests
from caption_endpoint import StandInEndpoint
from comfy_host import ComfyServer

WIDGETS = {
    "caption": "",
    "mode": "sa",
    "extra_instruction": "",
    "max_tokens": 64,
    "seed": 0,
    "tile_captions": False,
    "scale": 4.0,
    "tile": 0,
    "overlap": 0,
}
WHOLE = [0.0, 0.0, 1.0, 1.0]


class Pressed:
    """The button that interrupts, pressed once, and the time since then."""

    def __init__(self, server: ComfyServer) -> None:
        self.server, self.start = server, 0.0

    def once(self) -> None:
        if not self.start:
            self.start = time.monotonic()
            self.server.interrupt()

    def seconds(self) -> float:
        """Return how long ago it was pressed: the request, what the node was at, and the news of its end."""
        assert self.start, "never pressed"
        print(f"seconds from the interrupt to its end: {time.monotonic() - self.start:.2f}")
        return time.monotonic() - self.start


def free(server: ComfyServer) -> None:
    """Make ComfyUI forget all results and unload all models."""
    body = {"free_memory": True, "unload_models": True}
    requests.post(f"{server.url}/free", json=body, timeout=60).raise_for_status()
    # It does so between two prompts, on a busy machine only after the next one.
    nothing = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    server.run({"1": nothing, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})


def kept(server: ComfyServer) -> Path:
    return server.work_dir / "user" / "eam" / "captions"


def prompt_for(photo: str, *, loader: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """LoadImage -> EAM_SubjectCaption (with or without a captioner) -> what shows text."""
    inputs = {"image": ["1", 0], **WIDGETS, **changes}
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "2": {"class_type": "EAM_SubjectCaption", "inputs": inputs},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
    }
    if loader is not None:
        prompt["5"] = {"class_type": "EAM_LoadCaptioner", "inputs": {"name": "", **loader}}
        inputs["captioner"] = ["5", 0]
    return prompt


def run(server: ComfyServer, prompt: dict[str, Any], **options: Any) -> tuple[str, dict[str, Any]]:
    """Return caption and report, after a look at the text that the node shows."""
    outputs = server.run(prompt, **options)
    (caption,) = outputs["3"]["text"]
    assert outputs["2"]["text"] == [caption]
    return caption, json.loads(outputs["4"]["text"][0])


def at(endpoint: StandInEndpoint) -> dict[str, Any]:
    return {"source": endpoint.url, "name": "stand-in"}
