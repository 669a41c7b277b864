"""A chat-completions server for tests, on a free port of this machine: answers by script, and keeps what it was asked.

    with ChatServer(lambda asked: "A cat.") as server:
        Endpoint(server.url)

An answer is a text, or a `Raw` reply with status, headers and bytes as given. Texts are streamed when that is asked.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it came: its number from 0 among all posts, path, headers and JSON fields."""

    number: int
    path: str
    headers: dict[str, str]
    fields: dict[str, Any]

    @property
    def question(self) -> str:
        """The last text of the conversation."""
        content = self.fields["messages"][-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]


@dataclass(frozen=True)
class Raw:
    """A reply as it goes over the wire.

    Attributes:
        status: of HTTP.
        body: its pieces, sent one by one.
        headers: further ones; without "Content-Length" the end of the connection ends the body.
        before, between: seconds before the head, and before each piece of the body.
    """

    status: int = 200
    body: tuple[bytes, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    before: float = 0.0
    between: float = 0.0


Answer = Callable[[Asked], str | Raw]


class ChatServer:
    """Serve until the with statement ends."""

    def __init__(
        self,
        answer: Answer = lambda asked: "A cat.",
        *,
        models: str | Raw = "first-model",
        streams: bool = True,
        port: int = 0,
    ) -> None:
        """Keep the script.

        Args:
            answer: what is said to each request, called from several threads.
            models: name of the model that is listed, or the reply to that question.
            streams: False answers whole even where streaming is asked for.
            port: of this machine; 0 takes a free one.
        """
        self.answer, self.models, self.streams = answer, models, streams
        self.asked: list[Asked] = []
        self.listed: list[dict[str, str]] = []  # headers of the requests for the list of models
        self.most_at_once = self._now = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        """Address without /v1."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def reply(self, path: str, headers: dict[str, str], body: bytes) -> Raw:
        """Say what is answered to a post."""
        with self._lock:
            asked = Asked(len(self.asked), path, headers, json.loads(body))
            self.asked.append(asked)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            answer = self.answer(asked)
        finally:
            with self._lock:
                self._now -= 1
        if isinstance(answer, Raw):
            return answer
        return stream(answer) if asked.fields["stream"] and self.streams else whole(answer)


def whole(text: Any, finish: str = "stop", *, model: str = "", **message: Any) -> Raw:
    """Return a reply that is not streamed; `model` is the name that the server gives itself, if any."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return json_reply({"object": "chat.completion", "choices": [choice]} | ({"model": model} if model else {}))


def json_reply(fields: Any, status: int = 200, **headers: str) -> Raw:
    """Return a reply with JSON."""
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    length = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
    return Raw(status, (body,), length | {name.replace("_", "-"): text for name, text in headers.items()})


def stream(text: str, finish: str | None = "stop", *, done: bool = True, between: float = 0.0, model: str = "") -> Raw:
    """Return a streamed reply, one word a piece, with what servers send besides."""

    def event(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        fields = {"object": "chat.completion.chunk", "choices": [choice]} | ({"model": model} if model else {})
        return b"data: " + json.dumps(fields).encode() + b"\n\n"

    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1][:-1]
    events = [b": ping\n\n", event({"role": "assistant", "content": ""}), *(event({"content": w}) for w in words)]
    events += [event({}, finish)] if finish else []
    events += [b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\n', b"data: [DONE]\n\n"] if done else []
    return Raw(200, tuple(events), {"Content-Type": "text/event-stream"}, between=between)


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.listed.append(dict(self.headers))
            models = server.models
            listed = json_reply({"data": [{"id": models}, {"id": "other"}]}) if isinstance(models, str) else models
            self._send(listed if self.path == "/v1/models" else json_reply({}, 404))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reply = server.reply(self.path, dict(self.headers), body)
            self._send(reply if self.path == "/v1/chat/completions" else json_reply({"error": "no page"}, 404))

        def _send(self, reply: Raw) -> None:
            try:
                self._pause(reply.before)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in reply.body:
                    self._pause(reply.between)
                    self.wfile.write(piece)
                    self.wfile.flush()
            except OSError:  # the client has gone
                self.close_connection = True

        @staticmethod
        def _pause(seconds: float) -> None:
            end = time.monotonic() + seconds
            while seconds and time.monotonic() < end and not server.stopping.is_set():
                time.sleep(0.01)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
