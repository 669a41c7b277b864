"""Ask whoever waits for a local model whether to go on: while weights are read, at every layer, and at each token."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .messages import OnToken

SECONDS = 0.1  # between two words of the same number of tokens: a tenth of the second in which a stop has to come


class Watch:
    """Tell of each token, and again and again in between; whoever is told may raise to stop.

    Attributes:
        raised: what they raised.
    """

    def __init__(self, on_token: OnToken | None = None, max_tokens: int = 0) -> None:
        """Keep whom to tell."""
        self.on_token, self.max_tokens, self.tokens = on_token, max_tokens, 0
        self.raised: Exception | None = None
        self._due = 0.0

    def tell(self, tokens: int) -> None:
        """Tell how many tokens there are; what was raised once is raised each time."""
        if self.raised:
            raise self.raised
        self.tokens, self._due = tokens, time.monotonic() + SECONDS
        if self.on_token:
            try:
                self.on_token(tokens, self.max_tokens)
            except Exception as error:
                self.raised = error
                raise

    def tick(self, *_: Any) -> None:
        """Tell the number of tokens once more if that was some time ago."""
        if self.raised or time.monotonic() >= self._due:
            self.tell(self.tokens)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Let what was raised through, whatever the code in between makes of it."""
        try:
            yield
        except Exception:
            if self.raised:
                raise self.raised from None
            raise
        if self.raised:
            raise self.raised

    @contextmanager
    def at_layers(self, module: nn.Module) -> Iterator[None]:
        """Tick before each innermost layer: a prompt of thousands of tokens takes minutes on a CPU."""
        hooks = [each.register_forward_pre_hook(self.tick) for each in module.modules() if not any(each.children())]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def at_calls(self) -> TorchFunctionMode:
        """Tick at each call of torch by this thread: reading weights comes by at every tensor, and has no hook."""
        return _Calls(self.tick)


class TokenCount:
    """A stopping criterion of transformers' `generate` that stops nothing itself and tells a watch of each token."""

    def __init__(self, watch: Watch, prompt_tokens: int) -> None:
        """Start an answer."""
        self.watch, self.prompt_tokens = watch, prompt_tokens
        watch.tokens = 0

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Tell how many tokens there are; returns that no conversation [B] is done for that."""
        self.watch.tell(input_ids.shape[1] - self.prompt_tokens)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _Calls(TorchFunctionMode):
    def __init__(self, tick: Callable[[], None]) -> None:
        super().__init__()
        self.tick = tick

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.tick()
        return func(*args, **(kwargs or {}))
