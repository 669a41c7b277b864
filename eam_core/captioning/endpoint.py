"""A vision-language model behind an OpenAI-compatible endpoint of the user's: vLLM, llama.cpp's server, Ollama."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from .address import ALLOW_REMOTE, parse_address
from .chat import PieceCounter, answering_model, first_model, read_completion, request_body, same_model, server_message
from .endpoint_watch import Watch
from .exchange import API_KEY, Dropped, Exchange, Reply, Unreachable, has_key
from .messages import CaptionError, Conversation, GenerateConfig, OnToken

POLL_SECONDS = 0.25  # how long a host waits at most for the next chance to interrupt
ATTEMPTS = 4  # of one request, with waits of 1, 2 and 4 seconds between them
MOST_REFUSALS = 32  # in a row; a server that gave answers before then counts as one that gives no more
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_NO_MODEL = (
    r"(?:no such|unknown|invalid) model\W{1,4}%s(?!\w)|(?<!\w)%s\W{1,4}(?:\w+ )?not (?:be )?(?:found|exist|available)"
)

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
        self._has_replied = self._has_answered = self._tells_its_model = False
        self._refusals = 0  # in a row, since the last answer

    def prepare(self, on_token: OnToken | None = None) -> None:
        """Ask the endpoint for its first model if none was named, each time anew; see `Generator`."""
        if not self._asked_model:
            self._model = self._first_model(on_token and (lambda: on_token(0, 0)))

    @property
    def identity(self) -> str:
        """Return model and address; asks the endpoint for its first model if none is known yet.

        Raises:
            CaptionError: it cannot be asked, or has no model.
        """
        return f"{self._named_model(None)} at {self.address}"

    def generate(
        self, conversations: Sequence[Conversation], config: GenerateConfig, on_token: OnToken | None = None
    ) -> list[str | CaptionError]:
        """Answer each conversation, several at once.

        `on_token` is called from this thread: at each piece of a streamed answer and at least every quarter of a
        second, with the pieces of all answers together; what it raises ends all requests.

        Raises:
            EndpointError: nobody listens there, or the key, the address or the model's name is refused. After a first
                answer these are errors of single conversations, until many in a row fail so.
        """
        if not conversations:
            return []
        pieces = [0] * len(conversations)
        most = config.max_tokens * len(conversations)
        on_wait = on_token and (lambda: on_token(min(sum(pieces), most), most))
        model, encoded = self._named_model(on_wait), {}

        def ask(watch: Watch, index: int) -> str | CaptionError:
            if watch.given_up.is_set():  # the waiting thread may be slow to see the error
                return CaptionError("stopped")
            body = request_body(conversations[index], config, model=model, stream=on_token is not None, encoded=encoded)
            try:
                return self._answer(watch, body, model, lambda count: watch.count(pieces, index, count))
            except EndpointError:
                watch.given_up.set()
                raise
            except CaptionError as error:
                return error

        jobs = [lambda watch, index=index: ask(watch, index) for index in range(len(conversations))]
        return self._run(jobs, on_wait)

    def _answer(self, watch: Watch, body: bytes, model: str, on_pieces: Callable[[int], None]) -> str:
        def read(exchange: Exchange) -> str | Reply:
            counter = PieceCounter()
            reply = exchange.fetch("/chat/completions", body, lambda data: on_pieces(counter.feed(data)))
            if reply.status != 200:
                return reply
            text = read_completion(reply.body)
            self._check_model(model, answering_model(reply.body))
            self._has_answered, self._refusals = True, 0
            return text

        return self._request(watch, read, self.limits.answer, model)

    def _check_model(self, asked: str, answering: str) -> None:
        """Refuse the answer of another model than the one whose name it would be kept under.

        A name that the user gave may be an alias, so it is checked only where it once came back.
        """
        if not answering or same_model(asked, answering):
            self._tells_its_model = self._tells_its_model or bool(answering)
        elif self._tells_its_model or not self._asked_model:
            self._model = self._asked_model
            raise CaptionError(
                f"expected an answer of the model {asked!r}, got one of {answering!r}; name the model that you want"
            )

    def _named_model(self, on_wait: Callable[[], None] | None) -> str:
        self._model = self._model or self._first_model(on_wait)
        return self._model

    def _first_model(self, on_wait: Callable[[], None] | None) -> str:
        """Ask for the list of models; a server that is away for now is taken to come back with the same."""

        def read(exchange: Exchange) -> str | Reply:
            reply = exchange.fetch("/models", None, lambda data: None)
            return first_model(reply.body) if reply.status == 200 else reply

        known = self._model if self._has_answered else ""

        def ask(watch: Watch) -> str:
            try:
                return self._request(watch, read, self.limits.models, "", attempts=1 if known else ATTEMPTS)
            except EndpointError:
                raise
            except CaptionError:
                if not known:
                    raise
                return known

        return self._run([ask], on_wait)[0]

    def _run(self, jobs: Sequence[Callable[[Watch], ResultT]], on_wait: Callable[[], None] | None) -> list[ResultT]:
        """Do jobs in threads, in order of their numbers, while this thread watches the time and the host."""
        watch = Watch(self._sleep)
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

    def _request(
        self,
        watch: Watch,
        read: Callable[[Exchange], str | Reply],
        seconds: float,
        model: str,
        attempts: int = ATTEMPTS,
    ) -> str:
        """Ask until there is an answer, a few times at most.

        Raises:
            EndpointError: no use in asking anything else.
            CaptionError: no answer to this request.
        """
        trouble = ""
        for attempt in range(attempts):
            wait = 2.0**attempt
            try:
                exchange = Exchange(self.address, connect_seconds=self.limits.connect, total_seconds=seconds)
                with watch.opened(exchange):
                    found = read(exchange)
                self._has_replied = True
                if isinstance(found, str):
                    return found
                trouble = self._described(found)
                if found.status not in _RETRIED:
                    raise self._refused(found.status, trouble, model)
                wait = max(wait, found.retry_after)
            except Dropped as error:
                trouble = str(error)
            except Unreachable as error:
                trouble = str(error)
                # A server that was there may be starting again; one that never was is a mistake in the address.
                if not self._has_replied or attempt == attempts - 1:
                    raise self._failure(
                        f"expected an endpoint at {self.address.origin}, got no connection ({trouble}); start the "
                        "server or mend the address"
                    ) from error
            if attempt < attempts - 1:
                watch.wait(wait)
        raise CaptionError(f"expected an answer of {self.address.origin}, got {trouble}, {attempts} times; see its log")

    @staticmethod
    def _described(reply: Reply) -> str:
        # Servers tend to quote parts of a key that they refuse.
        said = "" if reply.status in (401, 403) else server_message(reply.body)
        return f"HTTP status {reply.status}" + (f" ({said})" if said else "")

    def _refused(self, status: int, trouble: str, model: str) -> CaptionError:
        answered = self._has_answered  # then key, address and name were right, and it is about this picture
        no_model = status == 404 or _misses_model(trouble, model)
        if no_model:
            self._model = self._asked_model  # a server that came back may have another first one
        if status == 401 or (status == 403 and not answered):
            kept_back = has_key() and not self.address.takes_key
            todo = f"give a valid key by the environment variable {API_KEY}"
            if kept_back:
                todo = (
                    f"{API_KEY} was not sent, as other machines get it by https only and if their host is named in "
                    f"{ALLOW_REMOTE} or allowed by --allow-remote"
                )
            return EndpointError(f"expected leave to ask {self.address.origin}, got {trouble}; {todo}")
        if no_model and not answered:
            what = f"the model {model!r}" if model else "a list of models"
            return EndpointError(f"expected {what} at {self.address}, got {trouble}; mend the model's name or address")
        if 300 <= status < 400:
            return EndpointError(
                f"expected an answer of {self.address}, got a redirect ({trouble}), which is not followed; name the "
                "final address"
            )
        why = f"expected an answer of {self.address.origin}, got {trouble}; see what the server supports"
        return self._failure(why) if status in (403, 404) else CaptionError(why)

    def _failure(self, why: str) -> CaptionError:
        """Return an error of one conversation if others were answered not too long ago, or else of the endpoint."""
        self._refusals += 1
        if not self._has_answered:
            return EndpointError(why)
        return (
            EndpointError(f"{why} ({self._refusals} in a row)")
            if self._refusals >= MOST_REFUSALS
            else CaptionError(why)
        )


def _misses_model(trouble: str, model: str) -> bool:
    """Tell whether a server says of this very model that it has none such; others miss the picture's file."""
    name = re.escape(model)
    return bool(model and re.search(_NO_MODEL % (name, name), trouble, re.I))
