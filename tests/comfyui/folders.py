"""What the tests of folders share: pictures in the input folder, the graph around them, and what came of it."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from comfy_host import ComfyServer
from PIL import Image

SETTINGS = {"pattern": "*", "subfolders": False, "existing": "skip", "go_on": True}
WORKFLOW = {"nodes": [{"id": 1, "type": "EAM_LoadFolder"}], "version": 0.4}


def make_pictures(folder: Path, *names: str, size: tuple[int, int] = (32, 24)) -> None:
    """Make pictures that differ from each other."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = np.frombuffer(name.encode(), np.uint8)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)


class Job:
    """A folder of a name of its own, a graph that goes through it, and its results.

    Args:
        server: runs the graph.
        steps: what to do with a picture: (class, inputs but for the image), one after the other.
        changes: to EAM_LoadFolder's inputs.
    """

    def __init__(self, server: ComfyServer, *steps: tuple[str, dict[str, Any]], **changes: Any) -> None:
        self.server = server
        name = f"job_{uuid.uuid4().hex[:8]}"
        self.folder = server.work_dir / "input" / name
        self.folder.mkdir(parents=True)
        self.output = server.work_dir / "output" / name
        inputs = {"folder": name, "output_folder": name} | SETTINGS | changes
        self.prompt = {"load": {"class_type": "EAM_LoadFolder", "inputs": inputs}}
        self.image: list[Any] = ["load", 0]
        for number, (kind, values) in enumerate(steps or [("ImageInvert", {})]):
            self.prompt[f"step{number}"] = {"class_type": kind, "inputs": {"image": self.image, **values}}
            self.image = [f"step{number}", 0]
        self.save("save")

    def save(self, key: str, **changes: Any) -> None:
        """Add an EAM_SaveFolder, or change the one of this key."""
        inputs = {"image": self.image, "item": ["load", 1], "format": "as input", "quality": 95, "suffix": ""}
        self.prompt[key] = {"class_type": "EAM_SaveFolder", "inputs": inputs | changes}

    def second(self, source: str, output: str, *steps: tuple[str, dict[str, Any]]) -> None:
        """Add another EAM_LoadFolder and EAM_SaveFolder to the graph."""
        inputs = self.prompt["load"]["inputs"] | {"folder": source, "output_folder": output}
        self.prompt["load2"] = {"class_type": "EAM_LoadFolder", "inputs": inputs}
        image = ["load2", 0]
        for number, (kind, values) in enumerate(steps):
            self.prompt[f"second{number}"] = {"class_type": kind, "inputs": {"image": image, **values}}
            image = [f"second{number}", 0]
        saver = {"image": image, "item": ["load2", 1]}
        self.prompt["save2"] = {"class_type": "EAM_SaveFolder", "inputs": self.prompt["save"]["inputs"] | saver}

    def queue(self, **inputs: Any) -> str:
        """Queue the prompt once, with changes to EAM_LoadFolder's inputs; return its id."""
        self.prompt["load"]["inputs"].update(inputs)
        body = {"prompt": self.prompt, "client_id": "test", "extra_data": {"extra_pnginfo": {"workflow": WORKFLOW}}}
        return self.server._post("/prompt", json=body).json()["prompt_id"]

    def run(self, **inputs: Any) -> str:
        """Queue the prompt, wait until nothing is left to run, and return what the last run said."""
        first = self.queue(**inputs)
        wait_idle(self.server)
        history = self.server._get("/history").json()
        last = list(history)[-1]
        assert first in history
        assert history[last]["status"]["status_str"] == "success", history[last]["status"]["messages"]
        return history[last]["outputs"]["load"]["text"][0]

    def error(self, **inputs: Any) -> str:
        """Queue the prompt; return the message it fails with."""
        prompt_id = self.queue(**inputs)
        wait_idle(self.server)
        messages = dict(self.server._get(f"/history/{prompt_id}").json()[prompt_id]["status"]["messages"])
        return messages["execution_error"]["exception_message"].strip()

    def results(self) -> list[str]:
        """List the files of the output folder, the report left out."""
        found = (path.relative_to(self.output).as_posix() for path in self.output.rglob("*") if path.is_file())
        return sorted(name for name in found if name != "eam_folder.jsonl")

    def lines(self, *states: str) -> list[dict[str, Any]]:
        """Read the report's lines of some states."""
        texts = (self.output / "eam_folder.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, texts) if line["state"] in states]


def wait_idle(server: ComfyServer, timeout: float = 300.0) -> None:
    """Wait until the server's queue is empty and nothing runs."""
    deadline = time.monotonic() + timeout
    while server._get("/prompt").json()["exec_info"]["queue_remaining"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
