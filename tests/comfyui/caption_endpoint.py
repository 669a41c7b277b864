"""A stand-in endpoint for the caption nodes: streams set answers word by word, as slowly as told."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from captioning_server import Asked, ChatServer, Raw, stream


class StandInEndpoint(ChatServer):
    """Answer every picture with the caption `text`, and every tile with `text` and its number; a context manager.

    Attributes:
        text: of the caption.
        pause: seconds between words.
    """

    def __init__(self, text: str = "A red boat lies on the beach.", pause: float = 0.0) -> None:
        super().__init__(self._say)
        self.text, self.pause = text, pause

    def _say(self, asked: Asked) -> Raw:
        text = self.text if asked.number == 0 else self.text[:-1] + f" number {asked.number}."
        areas = [{"name": "red boat", "box": [100, 200, 600, 900]}]
        return stream(json.dumps({"focused": True, "focal_areas": areas, "caption": text}), between=self.pause)
