"""What ComfyUI tells the page while a prompt runs: texts, pictures, which nodes work, and how it ends."""

import io
import json
import struct
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import websocket
from comfy_host import ComfyServer
from PIL import Image

TEXT, PREVIEW_WITH_METADATA = 3, 4  # ComfyUI's kinds of binary messages


@dataclass
class News:
    """Everything of one run, in order.

    Attributes:
        texts: (node, text) of progress texts.
        times: when each of them came, in seconds.
        pictures: (node, picture [H, W, 3], the text before it) of previews.
        executing: nodes that were computed, those put in by others too.
        outputs: what each kind of node showed at its end.
        outcome: "execution_success", "execution_interrupted" or "execution_error".
        error: its message.
    """

    texts: list[tuple[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    pictures: list[tuple[str, np.ndarray, str]] = field(default_factory=list)
    executing: list[str] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""
    error: str = ""


def follow(host: ComfyServer, prompt: dict[str, Any]) -> News:
    """Queue a prompt as the page does and collect what comes back until it ends."""
    client, news = uuid.uuid4().hex, News()
    socket = websocket.create_connection(f"{host.url.replace('http', 'ws', 1)}/ws?clientId={client}", timeout=120)
    try:
        socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        host.queue(prompt, client)
        while not news.outcome:
            message = socket.recv()
            if isinstance(message, bytes):
                _see(news, message)
            else:
                _hear(news, json.loads(message), prompt)
        return news
    finally:
        socket.close()


def _see(news: News, message: bytes) -> None:
    kind, length = struct.unpack(">II", message[:8])
    head, rest = message[8 : 8 + length].decode(), message[8 + length :]
    if kind == TEXT:
        news.texts.append((head, rest.decode()))
        news.times.append(time.monotonic())
    elif kind == PREVIEW_WITH_METADATA:
        picture = np.asarray(Image.open(io.BytesIO(rest)).convert("RGB")).astype(int)
        said = news.texts[-1][1] if news.texts else ""
        news.pictures.append((json.loads(head)["display_node_id"], picture, said))


def _hear(news: News, event: dict[str, Any], prompt: dict[str, Any]) -> None:
    kind, data = event["type"], event.get("data", {})
    if kind in ("execution_success", "execution_interrupted", "execution_error"):
        news.outcome, news.error = kind, data.get("exception_message", "")
    elif kind == "executing" and data["node"] is not None:
        news.executing.append(data["node"])
    elif kind == "executed" and data["node"] in prompt:
        news.outputs[prompt[data["node"]]["class_type"]] = data["output"]
