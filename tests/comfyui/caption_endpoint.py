"""A stand-in for a chat-completions endpoint on this machine: streams set answers word by word, as slowly as told."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StandInEndpoint:
    """Answer every picture with the caption `text`, and every tile with `text` and its number; a context manager.

    Attributes:
        text: of the caption.
        pause: seconds between words.
        asked: fields of each request, in order.
    """

    def __init__(self, text: str = "A red boat lies on the beach.", pause: float = 0.0) -> None:
        self.text, self.pause = text, pause
        self.asked: list[dict[str, Any]] = []
        self._closed = threading.Event()

    def __enter__(self) -> "StandInEndpoint":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append(json.loads(body))
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for piece in outer._answer().split(" "):
                    self._send({"choices": [{"index": 0, "delta": {"content": piece + " "}}]})
                    if outer._closed.wait(outer.pause):
                        return
                self._send({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                self.wfile.write(b"data: [DONE]\n\n")

            def _send(self, fields: dict[str, Any]) -> None:
                self.wfile.write(f"data: {json.dumps(fields)}\n\n".encode())
                self.wfile.flush()

            def handle(self) -> None:
                with suppress(ConnectionError):  # the other side has hung up
                    super().handle()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self) -> str:
        number = len(self.asked) - 1
        text = self.text if number == 0 else self.text[:-1] + f" number {number}."
        areas = [{"name": "red boat", "box": [100, 200, 600, 900]}]
        return json.dumps({"focused": True, "focal_areas": areas, "caption": text})
