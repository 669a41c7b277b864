"""An endpoint that means harm: what it sends costs bounded memory and time, and goes nowhere but into one sentence."""

import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from endpoint_chats import CONFIG, conversation, no_wait

from eam_core.captioning.endpoint import Endpoint, TimeLimits
from eam_core.captioning.exchange import LONGEST_WAIT, MAX_BODY, Reply
from eam_core.captioning.messages import CaptionError

pytestmark = pytest.mark.usefixtures("no_caption_settings")

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ANSWER = json.dumps({"choices": [{"message": {"content": "A cat."}, "finish_reason": "stop"}]}).encode()


class RawServer:
    """Sends bytes as they are given to whoever connects, until there are no more or the other side has gone."""

    def __init__(self, pieces: Callable[[], Iterator[bytes]]) -> None:
        self.pieces, self.asked = pieces, []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "RawServer":
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                head, _, body = connection.recv(2**16).partition(b"\r\n\r\n")
                self.asked.append(head)
                length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
                missing = int(length.split(b":")[1]) - len(body)
                while missing > 0:
                    missing -= len(connection.recv(2**16))
                for piece in self.pieces():
                    connection.sendall(piece)
            except OSError:  # the other side has gone
                pass


def endless(first: bytes, piece: bytes, pause: float = 0.0) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield first
        while True:
            time.sleep(pause)
            yield piece

    return pieces


def once(data: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter((data,))


CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
HARM = {
    "endless body": endless(HEAD + b"\r\n", b" " * 2**16),
    "endless chunks": endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
    "a terabyte promised": endless(HEAD + b"Content-Length: 1099511627776\r\n\r\n", b" " * 2**16),
    "endless stream of events": endless(HEAD + b"\r\n", b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n' * 500),
    "endless line of the status": endless(b"HTTP/1.1 200 ", b"a" * 2**16),
    "endless header": endless(HEAD + b"X-Long: ", b"a" * 2**16),
    "endless headers": endless(HEAD, b"X-Many: a\r\n" * 1000),
    "endless interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
    "endless trailers": endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n", 0.001),
    "a byte now and then": endless(HEAD + b"\r\n", b" ", 0.05),
    "chunks of negative size": endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", b"ab", 0.001),
    "chunk size of a million digits": once(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 10**6),
    "length of ten thousand digits": once(HEAD + b"Content-Length: " + b"9" * 10_000 + b"\r\n\r\n{}"),
    "no HTTP at all": once(b"\x16\x03\x01\x02\x00" * 100),
    "status of letters": once(b"HTTP/1.1 ABC OK\r\n\r\n"),
    "nothing": once(b""),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_never_ends_or_makes_no_sense_is_given_up_within_bounds(harm: str) -> None:
    seconds = 0.8
    tracemalloc.start()
    try:
        with RawServer(HARM[harm]) as server:
            model = Endpoint(server.url, "m", limits=TimeLimits(answer=seconds), sleep=no_wait([]))
            start = time.monotonic()
            (answer,) = model.generate([conversation()], CONFIG, lambda *_: None)
            took = time.monotonic() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(answer, CaptionError) and str(answer).isprintable() and len(str(answer)) < 500
    assert took < 4 * (seconds + 0.25) + 4  # four attempts, on a busy machine
    assert peak < 8 * MAX_BODY


def test_a_packed_answer_is_never_unpacked() -> None:
    """Packed answers are not asked for; one that comes all the same is no JSON, however small it is."""
    bomb = gzip.compress(b" " * 64 * 2**20)
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: " + str(len(bomb)).encode() + b"\r\n\r\n"
    tracemalloc.start()
    try:
        with RawServer(once(head + bomb)) as server:
            (answer,) = Endpoint(server.url, "m", sleep=no_wait([])).generate([conversation()], CONFIG)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(answer, CaptionError) and "no JSON" in str(answer) and str(answer).isprintable()
    assert peak < 32 * 2**20
    accepted = [line for line in server.asked[0].lower().split(b"\r\n") if line.startswith(b"accept-encoding")]
    assert accepted == [b"accept-encoding: identity"]


@pytest.mark.parametrize("header", ["Location", "Refresh", "Link", "Alt-Svc", "Set-Cookie"])
@pytest.mark.parametrize("status", [200, 301, 302, 303, 307, 308])
def test_no_header_leads_to_another_host(header: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAM_API_KEY", "sk-secret")
    reached = []
    with RawServer(once(HEAD + b"\r\n" + ANSWER)) as other:
        other_port = other.url.rsplit(":", 1)[1]
        lead = f"{header}: http://localhost:{other_port}/v1\r\nContent-Length: {len(ANSWER)}\r\n\r\n".encode()
        reply = HEAD.replace(b"200", str(status).encode()) + lead + ANSWER
        with RawServer(once(reply)) as server:
            try:
                answers = Endpoint(server.url, "m", sleep=no_wait([])).generate([conversation()], CONFIG)
            except CaptionError as error:
                answers = [error]
        reached += other.asked
    assert not reached and len(server.asked) == 1
    assert answers == ["A cat."] if status == 200 else "redirect" in str(answers[0])
    assert b"Cookie" not in server.asked[0]


@pytest.mark.parametrize(
    "asked",
    [
        "9" * 5000,
        "-1",
        "1e999",
        "nan",
        "inf",
        "Wed, 21 Oct 99999999 07:28:00 GMT",
        "Wed, 99 Zzz 2026",
        ",",
        "²",
        "\xff" * 9,
    ],
)
def test_waiting_as_a_server_asks_has_bounds(asked: str) -> None:
    from email.message import Message

    headers = Message()
    headers["Retry-After"] = asked
    assert 0.0 <= Reply(503, headers, b"").retry_after <= LONGEST_WAIT


def test_an_answer_of_broken_characters_is_a_caption_that_files_and_terminals_hold() -> None:
    from eam_core.captioning.caption import read_answer

    said = "A \ud800cat\x1b[31m and\x00 a \x9bdog\u202e on <script>alert(1)</script>."
    body = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}).encode()
    with RawServer(once(HEAD + b"\r\n" + body)) as server:
        (answer,) = Endpoint(server.url, "m", sleep=no_wait([])).generate([conversation()], CONFIG)
    assert isinstance(answer, str)
    for caption in (read_answer(answer, "da").caption, read_answer(json.dumps({"caption": answer}), "sa").caption):
        caption.encode()
        assert caption.isprintable() and "A cat" in caption
