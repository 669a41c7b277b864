"""What the threads that ask an endpoint share with the thread that waits for them: news, open exchanges, the end."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .exchange import Exchange
from .messages import CaptionError


class Watch:
    """Wake the thread that waits, and let it end what the others do."""

    def __init__(self, sleep: Callable[[float], object] | None) -> None:
        """Begin with nothing open.

        Args:
            sleep: waits so many seconds before another attempt; None waits until it is stopped.
        """
        self.news, self.given_up = threading.Event(), threading.Event()
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._open: set[Exchange] = set()

    @contextmanager
    def opened(self, exchange: Exchange) -> Iterator[Exchange]:
        """Keep an exchange where it can be cut off while it is used."""
        self._open.add(exchange)
        try:
            if self._stopped.is_set():
                exchange.cut()
            yield exchange
        finally:
            self._open.discard(exchange)

    def count(self, pieces: list[int], index: int, count: int) -> None:
        """Note how many pieces of an answer have come."""
        pieces[index] = count
        self.news.set()

    def wait(self, seconds: float) -> None:
        """Wait before another attempt.

        Raises:
            CaptionError: there is to be none, as all was stopped.
        """
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
