"""What a vision-language model is told, before any model's own format, and what every such model offers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from ..errors import EAMError


class CaptionError(EAMError):
    """A captioner cannot be used, or gave no usable answer for one picture."""


@dataclass(frozen=True)
class Message:
    """Hold one turn of a conversation.

    Attributes:
        role: who speaks.
        parts: in order, texts and pictures [3,H,W] in [0,1].
    """

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Tensor, ...]


Conversation = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Say how answers are drawn.

    Attributes:
        max_tokens: most tokens of an answer.
        seed: same seed, same answer; each conversation of a batch is drawn with it on its own.
        temperature: 0 takes the likeliest token always, where the seed changes nothing.
    """

    max_tokens: int = 512
    seed: int = 0
    temperature: float = 0.3

    def __post_init__(self) -> None:
        if self.max_tokens < 16:
            raise ValueError(f"expected max_tokens of at least 16, got {self.max_tokens}; 512 suits a caption")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"expected a temperature in [0, 2], got {self.temperature}; 0.3 keeps to the picture")


# Called as (tokens so far, most tokens) while an answer grows; may raise to stop.
OnToken = Callable[[int, int], None]


class Generator(Protocol):
    """Answer conversations about pictures; all that the rest knows of a vision-language model."""

    def prepare(self, on_token: OnToken | None = None) -> None:
        """Find out what `identity` and `generate` need, such as the name of a served model.

        Args:
            on_token: called as (0, 0) while that takes time; may raise to stop.

        Raises:
            CaptionError: the model cannot be used.
        """
        ...

    @property
    def identity(self) -> str:
        """Return what tells this model from others, for the cache; `prepare` comes first."""
        ...

    def generate(
        self, conversations: Sequence[Conversation], config: GenerateConfig, on_token: OnToken | None = None
    ) -> list[str | CaptionError]:
        """Answer each conversation, or say what kept the model from answering that one.

        Raises:
            CaptionError: the model as such cannot be used, so that going on is of no use.
        """
        ...
