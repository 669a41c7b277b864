"""A vision-language model whose answers are counted, to tell one that fails now and then from one of no use."""

import threading
from collections.abc import Sequence

from eam_core.captioning.messages import CaptionError, Conversation, GenerateConfig, Generator, OnToken


class CountedModel:
    """Pass a model's answers on and count them; a `Generator`, for several threads."""

    def __init__(self, model: Generator) -> None:
        """Keep the model."""
        self._model, self._lock = model, threading.Lock()
        self.answers = 0  # calls with any answer; one that cannot be used still shows that the model works
        self._misses = 0

    @property
    def identity(self) -> str:
        """Return the model's."""
        return self._model.identity

    def prepare(self, on_token: OnToken | None = None) -> None:
        """Let the model get ready; see `Generator`."""
        self._model.prepare(on_token)

    def generate(
        self, conversations: Sequence[Conversation], config: GenerateConfig, on_token: OnToken | None = None
    ) -> list[str | CaptionError]:
        """Answer each conversation; see `Generator`."""
        answers = self._model.generate(conversations, config, on_token)
        if any(isinstance(answer, str) for answer in answers):
            with self._lock:
                self.answers, self._misses = self.answers + 1, 0
        return answers

    def miss(self) -> int:
        """Count pictures that were asked about without any answer; returns how often that was since the last one."""
        with self._lock:
            self._misses += 1
            return self._misses
