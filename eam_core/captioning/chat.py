"""The chat-completions format: a conversation as a request, and the text of a reply, streamed or whole."""

import base64
import io
import json
import re
from collections.abc import MutableMapping
from typing import Any

from PIL import Image
from torch import Tensor

from .exchange import Dropped
from .messages import CaptionError, Conversation, GenerateConfig

# Up to so many pixels a picture is sent as PNG: JPEG's blocks are large against a small picture's details, and PNG
# costs little there. Photos beyond it are JPEG at a quality that shows no blocks, a quarter of PNG's size.
PNG_PIXELS = 256 * 256
_SEEDS = 2**31  # servers read seeds as 32-bit or 64-bit numbers, some with the largest one meaning "random"

_Encoded = MutableMapping[int, str]


def request_body(
    conversation: Conversation, config: GenerateConfig, *, model: str, stream: bool, encoded: _Encoded
) -> bytes:
    """Return what is posted for a conversation.

    Args:
        conversation: its pictures become image_url parts with their data, where they stand among the texts.
        config: how the answer is drawn.
        model: name of the model.
        stream: whether the answer shall come piece by piece.
        encoded: pictures by id() that were encoded before; the examples are the same in all conversations.
    """
    messages = []
    for message in conversation:
        parts = [_part(part, encoded) for part in message.parts]
        only_text = len(parts) == 1 and isinstance(message.parts[0], str)
        # Some chat templates want the system's and assistant's turns as plain text.
        messages.append({"role": message.role, "content": message.parts[0] if only_text else parts})
    fields = {
        "model": model,
        "messages": messages,
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "seed": config.seed % _SEEDS,
        "stream": stream,
    }
    return json.dumps(fields).encode()


def data_url(picture: Tensor) -> str:
    """Return a picture [3,H,W] in [0,1] as a data URL."""
    pixels = picture.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().contiguous().numpy()
    data = io.BytesIO()
    if pixels.shape[0] * pixels.shape[1] <= PNG_PIXELS:
        kind = "png"
        Image.fromarray(pixels).save(data, "PNG")
    else:
        kind = "jpeg"
        Image.fromarray(pixels).save(data, "JPEG", quality=95, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def first_model(body: bytes) -> str:
    """Return the first model of a list of models.

    Raises:
        CaptionError: there is none.
    """
    fields = _json(body)
    models = fields.get("data") if isinstance(fields, dict) else None
    name = models[0].get("id") if isinstance(models, list) and models and isinstance(models[0], dict) else None
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise CaptionError(f"endpoint: expected a list of models, got {shown(body)}; name the model yourself")
    return name


class PieceCounter:
    """Count the pieces of a streamed answer as they come; most servers send one for each token."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count, self._rest = 0, b""

    def feed(self, data: bytes) -> int:
        """Take the next bytes; returns how many pieces came so far."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:5]  # the rest of a line tells nothing more
        self.count += sum(line.startswith(b"data:") for line in lines)
        return self.count


def read_completion(body: bytes) -> str:
    """Return the text of a reply; one that was not streamed although it was asked to is read as well.

    An answer that ends because it may have no more tokens is given as far as it goes.

    Raises:
        Dropped: a streamed reply broke off.
        CaptionError: it holds no answer, or one that was withheld.
    """
    fields = _json(body)
    if fields is None and any(line.startswith(b"data:") for line in body.splitlines()):
        text, finish = _joined(body)
    else:
        text, finish = _whole(fields, body)
    if finish == "content_filter":
        raise CaptionError("expected a caption, got an answer withheld by the server's filter; type a caption instead")
    return text


def answering_model(body: bytes) -> str:
    """Return the model that a reply names as its own; "" where it names none."""
    lines = [line.removeprefix(b"data:") for line in body.splitlines() if line.startswith(b"data:")]
    for data in lines or [body]:
        fields = _json(data)
        name = fields.get("model") if isinstance(fields, dict) else None
        if isinstance(name, str) and name.strip():
            return name.strip()
    return ""


def same_model(one: str, other: str) -> bool:
    """Tell whether two names may be of one model: servers leave out folders, endings and versions."""
    short, long = sorted((re.split(r"[\\/]", name.lower())[-1].removesuffix(".gguf") for name in (one, other)), key=len)
    return short in long


def server_message(body: bytes) -> str:
    """Return what a server says about an error, in one short line; "" if nothing that can be read."""
    fields = _json(body)
    for name in ("error", "message", "detail"):
        found = fields.get(name) if isinstance(fields, dict) else None
        found = found.get("message") if isinstance(found, dict) else found
        if isinstance(found, str) and found.strip():
            return shown(found, quote=False)
    return ""


def shown(said: bytes | str, *, quote: bool = True) -> str:
    """Return the beginning of a text for a message, without letters that a terminal would obey."""
    text = said[:1000] if isinstance(said, str) else said[:1000].decode("utf-8", errors="replace")
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    text = text if len(text) <= 160 else text[:157] + "..."
    return repr(text) if quote else text


def _part(part: str | Tensor, encoded: _Encoded) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if id(part) not in encoded:
        encoded[id(part)] = data_url(part)
    return {"type": "image_url", "image_url": {"url": encoded[id(part)]}}


def _joined(body: bytes) -> tuple[str, str | None]:
    """Put a streamed answer together; returns its text and why it ended."""
    pieces, finish, ended = [], None, False
    for line in body.splitlines():
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or not data:
            continue
        if data == b"[DONE]":
            ended = True
            break
        fields = _json(data)
        if isinstance(fields, dict) and fields.get("choices") == []:  # how many tokens were used
            continue
        choice = _choice(fields, data)
        piece, finish = choice.get("delta"), choice.get("finish_reason") or finish
        pieces.append(_text(piece.get("content")) if isinstance(piece, dict) else "")
    if not ended and finish is None:
        raise Dropped("an answer that broke off")
    return "".join(pieces), finish


def _whole(fields: Any, body: bytes) -> tuple[str, str | None]:
    choice = _choice(fields, body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise CaptionError(f"expected an answer with a message, got {shown(body)}; check the endpoint")
    refusal, content = message.get("refusal"), message.get("content")
    if isinstance(refusal, str) and refusal.strip() and not content:
        raise CaptionError(f"expected a caption, got a refusal ({shown(refusal)}); type a caption instead")
    return _text(content), choice.get("finish_reason")


def _choice(fields: Any, body: bytes) -> dict[str, Any]:
    choices = fields.get("choices") if isinstance(fields, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict):
        return choice
    if message := server_message(body):
        raise CaptionError(f"expected an answer, got an error of the server ({message}); see the server's log")
    kind = "something that is no JSON" if fields is None else "no choices"
    raise CaptionError(
        f"expected an answer, got {kind} ({shown(body)}); check that this is a chat-completions endpoint"
    )


def _text(content: Any) -> str:
    """Return the text of a content: plain, in parts, or none at all."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, str | dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _json(body: bytes) -> Any:
    """Read JSON; None for what is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
