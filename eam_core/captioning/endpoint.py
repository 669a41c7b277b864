"""A vision-language model behind an OpenAI-compatible endpoint of the user's: vLLM, llama.cpp's server, Ollama."""

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

from .address import parse_address
from .chat import PieceCounter, first_model, read_completion, request_body, server_message
from .exchange import API_KEY, Dropped, Exchange, Reply, Unreachable
from .messages import CaptionError, Conversation, GenerateConfig, OnToken

POLL_SECONDS = 0.25  # how long a host waits at most for the next chance to interrupt
ATTEMPTS = 4  # of one request, with waits of 1, 2 and 4 seconds between them
LONGEST_WAIT = 60.0  # seconds; a server that wants to be left alone for longer is asked earlier
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_NO_MODEL = re.compile(r"\b(?:no such model|unknown model|model\b.{0,80}\b(?:not found|not exist|not available))", re.I)

ResultT = TypeVar("ResultT")


class EndpointError(CaptionError):
    """The endpoint as such cannot be used, so that asking it anything else is of no use."""


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """Say how long an endpoint may take, in seconds.

    Attributes:
        connect: until there is a connection.
        answer: from the request to the end of the answer; a large model on a CPU takes minutes.
        models: the same for the list of models.
    """

    connect: float = 10.0
    answer: float = 600.0
    models: float = 15.0

    def __post_init__(self) -> None:
        if min(self.connect, self.answer, self.models) <= 0:
            raise ValueError(f"expected time limits above 0 s, got {self}; 600 s suit an answer")


class Endpoint:
    """Ask a chat-completions endpoint; a `Generator`."""

    def __init__(
        self,
        url: str,
        model: str = "",
        allow_remote: bool = False,
        *,
        concurrency: int = 4,
        limits: TimeLimits = TimeLimits(),
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """Check the address; nothing is sent yet.

        Args:
            url: such as http://127.0.0.1:8000, with or without /v1.
            model: name of the model; empty takes the first that the endpoint lists.
            allow_remote: let pictures go to another machine.
            concurrency: conversations asked at once.
            limits: how long things may take.
            sleep: waits so many seconds before another attempt; by default a wait that ends when the asking is stopped.

        Raises:
            CaptionError: the address cannot be used, or is another machine's without leave.
        """
        if concurrency < 1:
            raise ValueError(f"expected concurrency of at least 1, got {concurrency}; 4 suits most servers")
        self.address = parse_address(url, allow_remote=allow_remote)
        self.concurrency, self.limits, self._sleep = concurrency, limits, sleep
        self._model = self._asked_model = model.strip()
        self._has_answered = False

    def prepare(self, on_token: OnToken | None = None) -> None:
        """Ask the endpoint for its first model if none was named; see `Generator`."""
        self._named_model(on_token and (lambda: on_token(0, 0)))

    @property
    def identity(self) -> str:
        """Return model and host; asks the endpoint for its first model if none was named.

        Raises:
            CaptionError: it cannot be asked, or has no model.
        """
        return f"{self._named_model(None)} at {self.address.origin}"

    def generate(
        self, conversations: Sequence[Conversation], config: GenerateConfig, on_token: OnToken | None = None
    ) -> list[str | CaptionError]:
        """Answer each conversation, several at once.

        `on_token` is called from this thread: at each piece of a streamed answer and at least every quarter of a
        second, with the pieces of all answers together; what it raises ends all requests.

        Raises:
            CaptionError: nobody listens there, or the key, the address or the model's name is refused.
        """
        if not conversations:
            return []
        pieces = [0] * len(conversations)
        most = config.max_tokens * len(conversations)
        on_wait = on_token and (lambda: on_token(min(sum(pieces), most), most))
        model, encoded = self._named_model(on_wait), {}

        def ask(watch: "_Watch", index: int) -> str | CaptionError:
            body = request_body(conversations[index], config, model=model, stream=on_token is not None, encoded=encoded)
            try:
                return self._answer(watch, body, config, lambda count: watch.count(pieces, index, count))
            except EndpointError:
                raise
            except CaptionError as error:
                return error

        jobs = [lambda watch, index=index: ask(watch, index) for index in range(len(conversations))]
        return self._run(jobs, on_wait)

    def _answer(self, watch: "_Watch", body: bytes, config: GenerateConfig, on_pieces: Callable[[int], None]) -> str:
        def read(exchange: Exchange) -> str | Reply:
            counter = PieceCounter()
            reply = exchange.fetch("/chat/completions", body, lambda data: on_pieces(counter.feed(data)))
            return read_completion(reply.body, config) if reply.status == 200 else reply

        return self._request(watch, read, self.limits.answer)

    def _named_model(self, on_wait: Callable[[], None] | None) -> str:
        if not self._model:

            def read(exchange: Exchange) -> str | Reply:
                reply = exchange.fetch("/models", None, lambda data: None)
                return first_model(reply.body) if reply.status == 200 else reply

            (self._model,) = self._run([lambda watch: self._request(watch, read, self.limits.models)], on_wait)
        return self._model

    def _run(self, jobs: Sequence[Callable[["_Watch"], ResultT]], on_wait: Callable[[], None] | None) -> list[ResultT]:
        """Do jobs in threads, in order of their numbers, while this thread watches the time and the host."""
        watch = _Watch(self._sleep)
        pool = ThreadPoolExecutor(min(self.concurrency, len(jobs)))
        try:
            futures: list[Future[ResultT]] = [pool.submit(job, watch) for job in jobs]
            for future in futures:
                future.add_done_callback(lambda _: watch.news.set())
            while not all(future.done() for future in futures):
                watch.news.wait(POLL_SECONDS)
                watch.news.clear()
                watch.cut_late()
                if failed := next((each for each in futures if each.done() and each.exception()), None):
                    failed.result()
                if on_wait:
                    on_wait()
            return [future.result() for future in futures]
        finally:
            watch.stop()
            pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, watch: "_Watch", read: Callable[[Exchange], str | Reply], seconds: float) -> str:
        """Ask until there is an answer, a few times at most.

        Raises:
            EndpointError: no use in asking anything else.
            CaptionError: no answer to this request.
        """
        trouble = ""
        for attempt in range(ATTEMPTS):
            wait = 2.0**attempt
            try:
                with watch.exchange(self, seconds) as exchange:
                    found = read(exchange)
                self._has_answered = True
                if isinstance(found, str):
                    return found
                trouble = self._described(found)
                if found.status not in _RETRIED:
                    raise self._refused(found.status, trouble)
                wait = max(wait, _retry_after(found))
            except Dropped as error:
                trouble = str(error)
            except Unreachable as error:
                trouble = str(error)
                # A server that was there may be starting again; one that never was is a mistake in the address.
                if not self._has_answered or attempt == ATTEMPTS - 1:
                    raise EndpointError(
                        f"expected an endpoint at {self.address.origin}, got no connection ({trouble}); start the "
                        "server or mend the address"
                    ) from error
            if attempt < ATTEMPTS - 1:
                watch.wait(wait)
        raise CaptionError(f"expected an answer of {self.address.origin}, got {trouble}, {ATTEMPTS} times; see its log")

    @staticmethod
    def _described(reply: Reply) -> str:
        # Servers tend to quote parts of a key that they refuse.
        said = "" if reply.status in (401, 403) else server_message(reply.body)
        return f"HTTP status {reply.status}" + (f" ({said})" if said else "")

    def _refused(self, status: int, trouble: str) -> CaptionError:
        if status in (401, 403):
            return EndpointError(
                f"expected leave to ask {self.address.origin}, got {trouble}; give a valid key by the environment "
                f"variable {API_KEY}"
            )
        if status == 404 or _NO_MODEL.search(trouble):
            what = f"the model {self._model!r}" if self._model else "a list of models"
            self._model = self._asked_model  # a server that comes back may have another first one
            return EndpointError(f"expected {what} at {self.address}, got {trouble}; mend the model's name or address")
        if 300 <= status < 400:
            return EndpointError(
                f"expected an answer of {self.address}, got a redirect ({trouble}), which is not followed; name the "
                "final address"
            )
        return CaptionError(f"expected an answer of {self.address.origin}, got {trouble}; see what the server supports")


class _Watch:
    """What the threads of one `Endpoint._run` share with the thread that waits for them."""

    def __init__(self, sleep: Callable[[float], object] | None) -> None:
        self.news = threading.Event()
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._open: set[Exchange] = set()

    def exchange(self, endpoint: Endpoint, seconds: float) -> "_Opened":
        """Open an exchange for a with statement."""
        return _Opened(
            self._open,
            self._stopped,
            Exchange(endpoint.address, connect_seconds=endpoint.limits.connect, total_seconds=seconds),
        )

    def count(self, pieces: list[int], index: int, count: int) -> None:
        """Note how many pieces of an answer have come."""
        pieces[index] = count
        self.news.set()

    def wait(self, seconds: float) -> None:
        """Wait before another attempt."""
        self._sleep(seconds)
        if self._stopped.is_set():
            raise CaptionError("stopped")

    def cut_late(self) -> None:
        """End what takes too long."""
        for exchange in list(self._open):
            exchange.cut_if_late()

    def stop(self) -> None:
        """End everything; threads leave at once, but for one that is still connecting."""
        self._stopped.set()
        for exchange in list(self._open):
            exchange.cut()


@dataclass(frozen=True)
class _Opened:
    """Keep an exchange where it can be cut off while it is used."""

    open_ones: set[Exchange]
    stopped: threading.Event
    exchange: Exchange

    def __enter__(self) -> Exchange:
        self.open_ones.add(self.exchange)
        if self.stopped.is_set():
            self.exchange.cut()
        return self.exchange

    def __exit__(self, *_: object) -> None:
        self.open_ones.discard(self.exchange)


def _retry_after(reply: Reply) -> float:
    """Return how many seconds a server asks for, within bounds; 0 if it does not."""
    asked = reply.headers.get("Retry-After", "").strip()
    try:
        seconds = float(asked) if asked.isdecimal() else _seconds_until(asked)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)


def _seconds_until(date: str) -> float:
    when = parsedate_to_datetime(date)
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return (when - datetime.now(timezone.utc)).total_seconds()
