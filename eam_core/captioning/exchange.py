"""One HTTP exchange with an endpoint: no redirects, no proxies, a size limit, and another thread can cut it off."""

import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import Message as Headers
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from .address import ALLOW_REMOTE, Address, is_loopback
from .messages import CaptionError

API_KEY = "EAM_API_KEY"
MAX_BODY = 8 * 2**20  # bytes; a streamed answer of 4096 tokens takes about 1.5 MB
LONGEST_WAIT = 60.0  # seconds; a server that wants to be left alone for longer is asked earlier
_BLOCK = 2**16


class Unreachable(Exception):
    """No connection came about."""


class Dropped(Exception):
    """The connection broke before the answer was whole, or took too long."""


@dataclass(frozen=True)
class Reply:
    """Hold what came back."""

    status: int
    headers: Headers
    body: bytes

    @property
    def retry_after(self) -> float:
        """How many seconds the server asks to be left alone, within bounds; 0 if it does not."""
        asked = self.headers.get("Retry-After", "").strip()
        try:
            seconds = float(asked) if asked.isdecimal() else _seconds_until(asked)
        except (ValueError, TypeError, OverflowError):
            return 0.0
        return min(max(seconds, 0.0), LONGEST_WAIT)


class Exchange:
    """Send one request and read its reply."""

    def __init__(self, address: Address, *, connect_seconds: float, total_seconds: float) -> None:
        """Keep address and limits; the time starts now."""
        self._address, self._connect_seconds = address, connect_seconds
        self._deadline = time.monotonic() + total_seconds
        self._too_late = f"no whole answer within {total_seconds:g} s"
        self._socket: socket.socket | None = None
        self._cut = ""  # why

    def fetch(self, path: str, body: bytes | None, on_data: Callable[[bytes], None]) -> Reply:
        """POST a JSON body, or GET where there is none.

        Args:
            path: below the address's own.
            body: to send.
            on_data: called with each piece of the reply's body.

        Raises:
            Unreachable: no connection.
            Dropped: the connection broke or the time is over.
            CaptionError: the reply is larger than any answer, or the API key cannot be sent.
        """
        headers = {"Connection": "close", "Accept": "*/*", **_authorization(self._address)}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = self._connected()
        try:
            with suppress(BrokenPipeError):  # a server that refuses a long request answers before it has read it
                connection.request("GET" if body is None else "POST", self._address.path + path, body, headers)
            response = connection.getresponse()
            with response:
                whole = self._read(response, on_data)
            return Reply(response.status, response.headers, _without_key(whole))
        except TimeoutError as error:
            raise Dropped(self._too_late) from error
        except (OSError, HTTPException) as error:
            raise Dropped(self._cut or f"a broken connection ({type(error).__name__})") from error
        finally:
            connection.close()

    def cut(self, reason: str = "stopped") -> None:
        """End the exchange from another thread."""
        self._cut = self._cut or reason
        if self._socket is not None:
            with suppress(OSError):  # not SSLSocket.shutdown, which pulls its state from under the reading thread
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def cut_if_late(self) -> None:
        """End the exchange if its time is over; a server that sends a byte now and then would never time out alone."""
        if time.monotonic() > self._deadline:
            self.cut(self._too_late)

    def _connected(self) -> HTTPConnection:
        address, seconds = self._address, self._connect_seconds
        if address.secure:
            connection = HTTPSConnection(address.host, address.port, timeout=seconds, context=_tls())
        else:
            connection = HTTPConnection(address.host, address.port, timeout=seconds)
        try:
            connection.connect()
            assert connection.sock is not None
            self._socket = connection.sock
            peer = connection.sock.getpeername()[0]
            connection.sock.settimeout(max(0.1, self._deadline - time.monotonic()))
        except (OSError, ValueError) as error:  # UnicodeError, a ValueError: a name that cannot be looked up
            connection.close()
            raise Unreachable(self._cut or _reason(error)) from error
        if address.is_local and not is_loopback(peer):
            connection.close()
            raise CaptionError(
                f"endpoint: expected {address.host} to be this machine, got {peer}; name 127.0.0.1, or the other "
                f"machine itself with --allow-remote or in {ALLOW_REMOTE}"
            )
        if self._cut:  # while there was no socket to cut
            self.cut()
        return connection

    def _read(self, response, on_data: Callable[[bytes], None]) -> bytes:
        expected = response.length  # None where it is not said
        parts, size = [], 0
        while expected is None or size < expected:
            data = response.read1(_BLOCK)
            if not data:
                break
            size += len(data)
            if size > MAX_BODY:
                raise CaptionError(
                    f"endpoint: expected an answer of at most {MAX_BODY // 2**20} MiB, got more; check that "
                    f"{self._address} is a chat-completions endpoint"
                )
            parts.append(data)
            on_data(data)
        if self._cut:
            raise Dropped(self._cut)
        if expected is not None and size < expected:
            raise Dropped("a broken connection")
        return b"".join(parts)


def has_key() -> bool:
    """Tell whether the environment holds a key."""
    return bool(_key())


def _authorization(address: Address) -> dict[str, str]:
    """Return the header with the key; what http.client would refuse is refused here, as its message shows the value."""
    key = _key()
    if not key or not address.takes_key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise CaptionError(f"{API_KEY}: expected printable ASCII letters, got others; copy the key again")
    return {"Authorization": f"Bearer {key}"}


def _without_key(body: bytes) -> bytes:
    """Take the key out of a reply: servers quote it in errors, which are shown."""
    key = _key().encode()
    return body.replace(key, b"***") if key else body


def _key() -> str:
    return os.environ.get(API_KEY, "").strip()


@lru_cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _seconds_until(date: str) -> float:
    when = parsedate_to_datetime(date)
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return (when - datetime.now(timezone.utc)).total_seconds()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no connection in time"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
