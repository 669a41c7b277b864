"""What the tests of captioning share: grey pictures, a stand-in for a model that tells them apart, and the command."""

import base64
import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eam_core.captioning.messages import CaptionError
from train import caption
from train.caption import caption_data
from train.caption_data import AskConfig
from train.data.sources import all_photos
from train.options import run_script

GREYS = {f"{number}": 20 * number + 10 for number in range(7)}


def fill(folder: Path) -> Path:
    """Write grey pictures that a stand-in for a model can tell apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, grey in GREYS.items():
        Image.new("RGB", (48, 40), (grey, grey, grey)).save(folder / f"{name}.png")
    return folder


def name_of(picture: torch.Tensor) -> str:
    grey = round(picture.mean().item() * 255)
    return next(name for name, value in GREYS.items() if abs(value - grey) < 5)


class Fake:
    """A stand-in for a model: says which picture it was shown, and fails for some."""

    identity = "fake"

    def __init__(self, *failing: str, words: str = "A house"):
        self.failing, self.words, self.asked, self.batches = set(failing), words, [], []
        self.lock = threading.Lock()

    def prepare(self, on_token=None):
        pass

    def generate(self, conversations, config, on_token=None):
        answers = []
        for chat in conversations:
            mode = "sa" if len(chat) > 2 else "da"
            name = name_of(chat[-1].parts[0])
            text = f"{self.words} {name} in mode {mode}."
            if name in self.failing:
                answers.append(CaptionError("expected an answer, got none\nat all"))
            elif mode == "sa":
                area = {"name": "house", "box": [100, 0, 500, 1000]}
                answers.append(json.dumps({"focused": True, "focal_areas": [area], "caption": text}))
            else:
                answers.append(text)
            with self.lock:
                self.asked.append((name, mode))
        self.batches.append(len(conversations))
        return answers


def run(model, source: Path, out: Path, share=(0, 1), **settings):
    config = AskConfig(folder=out, **settings)
    return caption_data(model, all_photos([str(source)]), config, rank=share[0], world_size=share[1])


def texts(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.txt")}


def answer_for(asked) -> str:
    """Answer as `Fake` does, from the picture as it came."""
    data = asked.fields["messages"][-1]["content"][0]["image_url"]["url"].split(",")[1]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(data)))).astype(np.float32) / 255
    return f"A house {name_of(torch.from_numpy(pixels))}."


def words(server: Any, photos: Path, out: Path, *more: str) -> list[str]:
    return ["--images", str(photos), "--out", str(out), "--mode", "da", "--endpoint", server.url, *more]


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["caption", *arguments])
    try:
        run_script(caption.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
