"""Work of a local model in a thread of its own, so that whoever waits for it hears of it and can leave at once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .messages import OnToken

SECONDS = 0.1  # between two words of the same number of tokens: a tenth of the second in which a stop has to come

ResultT = TypeVar("ResultT")


class Stopped(Exception):
    """Nobody waits for this work any more."""


class Watch:
    """Connect work with the thread that waits for it: it is told of tokens, and may end the work between two steps."""

    def __init__(self) -> None:
        """Start."""
        self.news: SimpleQueue[int | None] = SimpleQueue()  # numbers of tokens; None at the end
        self._stopped = False

    def stop(self) -> None:
        """End the work at its next step."""
        self._stopped = True

    def check(self, *_: Any) -> None:
        """Go on with the work, or not.

        Raises:
            Stopped: nobody waits for it.
        """
        if self._stopped:
            raise Stopped

    def tell(self, tokens: int) -> None:
        """Tell how many tokens there are."""
        self.check()
        self.news.put(tokens)

    @contextmanager
    def at_layers(self, module: nn.Module) -> Iterator[None]:
        """Check before each innermost layer: a prompt of thousands of tokens takes minutes on a CPU."""
        hooks = [each.register_forward_pre_hook(self.check) for each in module.modules() if not any(each.children())]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def at_calls(self) -> TorchFunctionMode:
        """Check at each call of torch by this thread: reading weights comes by at every tensor, and has no hook."""
        return _Calls(self.check)


class TokenCount:
    """A stopping criterion of transformers' `generate` that stops nothing itself and tells a watch of each token."""

    def __init__(self, watch: Watch, prompt_tokens: int) -> None:
        """Start an answer."""
        self.watch, self.prompt_tokens = watch, prompt_tokens
        watch.tell(0)

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Tell how many tokens there are; returns that no conversation [B] is done for that."""
        self.watch.tell(input_ids.shape[1] - self.prompt_tokens)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Workshop:
    """Do one thing after the other in a thread; a single step of torch can take longer than anyone likes to wait."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="captioner")

    def do(self, work: Callable[[Watch], ResultT], on_token: OnToken | None, max_tokens: int) -> ResultT:
        """Return what the work gives.

        Args:
            work: ends early, at a step of its own, when its watch says so.
            on_token: called in this thread as (tokens so far, max_tokens), at each token and ten times a second. What
                it raises leaves this function at once; work that is asked for next waits until the present one ends.
            max_tokens: for on_token.
        """
        watch, same_mode = Watch(), _mode_of_this_thread()

        def run() -> ResultT:
            try:
                with same_mode():
                    watch.check()
                    return work(watch)
            finally:
                watch.news.put(None)

        future, tokens = self._pool.submit(run), 0
        try:
            while tokens is not None:
                if on_token:
                    on_token(tokens, max_tokens)
                try:
                    tokens = watch.news.get(timeout=SECONDS)
                except Empty:
                    continue
            return future.result()
        except BaseException:
            watch.stop()
            raise


def _mode_of_this_thread() -> Callable[[], Any]:
    """Return what gives another thread this one's inference mode and CUDA device, which are a thread's own."""
    inference = torch.is_inference_mode_enabled()
    number = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    @contextmanager
    def same() -> Iterator[None]:
        with torch.inference_mode(inference), nullcontext() if number is None else torch.cuda.device(number):
            yield

    return same


class _Calls(TorchFunctionMode):
    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self.check = check

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.check()
        return func(*args, **(kwargs or {}))
