"""ComfyUI's own models that write text, as a captioner: a CLIP with `generate` and `decode`, as in core's TextGenerate.

ComfyUI 0.3.75 has none; newer ones load Qwen3-VL, Gemma and others as CLIP.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..eam_core.captioning.messages import CaptionError, Conversation, GenerateConfig, OnToken


class HostModel:
    """Answer through a CLIP of the host, which moves its weights, shows progress and heeds interrupts itself."""

    def __init__(self, clip: Any):
        """Keep the CLIP.

        Raises:
            CaptionError: the host's CLIP models cannot write text.
        """
        if not (hasattr(clip, "generate") and hasattr(clip, "decode")):
            raise CaptionError(
                "expected a ComfyUI whose CLIP models write text, got one without text generation; update ComfyUI, or "
                "leave clip empty and name a folder or an endpoint as source"
            )
        self.clip = clip
        self.identity = f"comfyui {_fingerprint(clip)}"

    def prepare(self, on_token: OnToken | None = None) -> None:
        """See `Generator`; nothing to find out."""

    def generate(
        self, conversations: Sequence[Conversation], config: GenerateConfig, on_token: OnToken | None = None
    ) -> list[str | CaptionError]:
        """Answer each conversation from its texts and its last picture.

        Raises:
            CaptionError: this CLIP does not write text, or sees no pictures.
        """
        if not _writes_text(self.clip):
            raise _unfit("one that does not write text")
        answers: list[str | CaptionError] = []
        for conversation in conversations:
            if on_token:
                on_token(0, config.max_tokens)
            answers.append(self._answer(*flattened(conversation), config))
        return answers

    def _answer(self, text: str, picture: Tensor, config: GenerateConfig) -> str:
        tokens = self._tokens(text, picture.movedim(0, -1)[None])
        ids = self.clip.generate(
            tokens,
            do_sample=config.temperature > 0,
            max_length=config.max_tokens,
            temperature=config.temperature or 1.0,
            top_k=64,
            top_p=0.95,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=config.seed,
        )
        return self.clip.decode(ids)

    def _tokens(self, text: str, image: Tensor) -> Any:
        """Tokenize with the picture; hosts have named it `image`, later `images`, and text-only ones drop it."""
        clip_tokenizer = getattr(self.clip, "tokenizer", None)
        # CLIP.tokenize takes any name and hands it on to what knows which there are.
        inner = getattr(clip_tokenizer, "tokenize_with_weights", self.clip.tokenize)
        for pictures in ({"images": [image]}, {"image": image}):
            given = {"skip_template": False, "min_length": 1, "thinking": False, **pictures}
            given = _accepted(inner, _accepted(self.clip.tokenize, given))
            if given.keys() & pictures.keys():
                tokens = self.clip.tokenize(text, **given)
                if _holds_picture(tokens):
                    return tokens
        raise _unfit("one that sees no pictures")


def flattened(conversation: Conversation) -> tuple[str, Tensor]:
    """Put a conversation into one text and its last picture [3,H,W]: examples keep their answers alone."""
    told, examples = [], []
    for message in conversation[:-1]:
        texts = [part for part in message.parts if isinstance(part, str)]
        told += texts if message.role == "system" else []
        examples += [f"- {text}" for text in texts] if message.role == "assistant" else []
    if examples:
        told += ["Examples of ideal answers, each about a picture that is not shown here:", *examples]
    last = conversation[-1].parts
    text = "\n".join([*told, *(part for part in last if isinstance(part, str))])
    return text, next(part for part in last if isinstance(part, Tensor))


def _writes_text(clip: Any) -> bool:
    """Tell whether a CLIP's model can write: CLIP has `generate` always and hands it on, down to the transformer."""
    model = clip.cond_stage_model
    inner = getattr(model, model.clip, None) if isinstance(getattr(model, "clip", None), str) else None
    parts = [model, inner, getattr(inner or model, "transformer", None)]
    return all(callable(getattr(part, "generate", None)) for part in parts if part is not None)


def _accepted(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a function has no parameter for; asked of its signature, as errors from within mean others."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def _holds_picture(tokens: Any) -> bool:
    """Tell whether core's tokens, {name: batches of (token, weight)}, stand for a picture anywhere."""
    groups = tokens.values() if isinstance(tokens, dict) else []
    batches = [batch for group in groups if isinstance(group, list) for batch in group if isinstance(batch, list)]
    firsts = [token[0] for batch in batches for token in batch if isinstance(token, tuple | list) and token]
    return any(isinstance(first, dict) and first.get("type") == "image" for first in firsts)


def _unfit(got: str) -> CaptionError:
    return CaptionError(
        f"expected a CLIP of a vision-language model such as Qwen3-VL or Gemma, got {got}; load another, or leave clip "
        "empty and name a folder or an endpoint as source"
    )


def _fingerprint(clip: Any) -> str:
    """Hash a model's layout, a few of its numbers and its patches: a CLIP knows no name of its own."""
    weights = clip.cond_stage_model.state_dict()
    known = [(name, tuple(value.shape)) for name, value in weights.items()]
    few = [value.flatten()[:4].tolist() for value in list(weights.values())[:: max(1, len(weights) // 32)]]
    # LoRAs are no part of the weights until these are moved. Their number is drawn anew with each, so answers of a
    # patched model are kept until ComfyUI ends; a number of an unpatched one tells nothing.
    patcher = getattr(clip, "patcher", None)
    patches = str(patcher.patches_uuid) if getattr(patcher, "patches", None) else ""
    return hashlib.sha256(repr((known, few, patches)).encode()).hexdigest()[:16]
