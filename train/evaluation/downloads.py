"""Keep metric packages from fetching weights unasked, and from waiting long for those that they may fetch."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch

from train.metrics import MetricError, import_pyiqa

TIMEOUT = 15.0


class DownloadRefused(BaseException):
    """Weights would have to be fetched. Not an Exception: no package must catch it and try again."""


@contextmanager
def no_downloads() -> Iterator[None]:
    """Refuse every download inside, at once.

    Raises:
        DownloadRefused: something inside wanted to fetch a file; says which, as far as that is known.
    """

    def refuse_file(url: str, target: str, *args, **kwargs) -> None:
        path = Path(target)
        raise DownloadRefused(
            f"its weights {path.name} are not in hub/{path.parent.name} of TORCH_HOME; --download fetches them"
        )

    def refuse(*args, **kwargs) -> None:
        raise DownloadRefused("some of its weights are not in the cache; --download fetches them")

    with ExitStack() as stack:
        try:
            # Imported before anything is replaced: it takes the function of torch.hub over by name.
            pyiqa = import_pyiqa()
        except (MetricError, ImportError):
            pass
        else:
            stack.enter_context(mock.patch.object(pyiqa.utils.download_util, "download_url_to_file", refuse_file))
        stack.enter_context(mock.patch.object(torch.hub, "download_url_to_file", refuse_file))
        # Other packages have downloaders of their own; all of them look an address up first.
        stack.enter_context(mock.patch.object(socket, "getaddrinfo", refuse))
        yield


@contextmanager
def hasty_downloads() -> Iterator[None]:
    """Give connections made inside 15 seconds to answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
