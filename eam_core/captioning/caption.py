"""A caption with what it is about, and how it is read out of a model's answer."""

import json
import re
import unicodedata
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from .messages import CaptionError

Mode = Literal["sa", "da"]
Fractions = tuple[float, float, float, float]
"""left, top, right, bottom as fractions of a picture"""

_LONGEST = 20_000  # characters of an answer that are looked at
_TRIES = 8  # places in an answer where its JSON may begin
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_UNOPENED_THOUGHTS = re.compile(r"\A.*</think>", re.DOTALL)  # some templates open them inside the prompt
_FENCE = re.compile(r"```(?:json)?\s*|```")
# Up to a quote that ends the field, or to the end of a text that breaks off; quotes inside may be left unescaped.
_CAPTION_FIELD = re.compile(r'"caption"\s*:\s*"(.*?)(?:(?<!\\)"\s*(?:,\s*"\w+"\s*:|\}|\Z)|\Z)', re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s|\Z)")
_REFUSAL = re.compile(
    r"^\W*(?:i(?:['’]?m| am) (?:(?:very |so )?sorry|unable|not able|afraid)|(?:so )?sorry\b|(?:my )?apologies\b|"
    r"i (?:can ?not|can['’]?t|could ?n[o'’]?t|won['’]?t|apologi[sz]e|do(?:n['’]?t| not) (?:see|have|know))|unable to\b|"
    r"unfortunately\b|as an? (?:ai|artificial|(?:large )?language model)|please (?:provide|upload|attach|share)|"
    r"(?:it (?:seems|appears|looks)\b.{0,30}|there is |there was )?\bno (?:image|picture|photo)\b)",
    re.IGNORECASE,
)
# What changes the direction of text that is read; joiners and other marks that scripts need are not among them.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
BOX_UNITS = 1000  # boxes are asked for, and answered, in thousandths of the picture's sides


@dataclass(frozen=True)
class FocalArea:
    """Name a thing that the picture is about.

    Attributes:
        name: as the model calls it.
        box: left, top, right, bottom as fractions of the picture; None where the model gives none.
    """

    name: str
    box: Fractions | None = None


@dataclass(frozen=True)
class Caption:
    """Hold what a model says of a picture.

    Attributes:
        caption: for the text encoders.
        focused: whether the picture has a clear focus.
        focal_areas: what that focus is.
    """

    caption: str
    focused: bool = False
    focal_areas: tuple[FocalArea, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return fields for JSON."""
        areas = [
            {"name": area.name, "box": None if area.box is None else [round(side, 4) for side in area.box]}
            for area in self.focal_areas
        ]
        return {"caption": self.caption, "focused": self.focused, "focal_areas": areas}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Caption":
        """Read what `as_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        areas = (FocalArea(str(area["name"]), area["box"] and tuple(area["box"])) for area in fields["focal_areas"])
        return cls(str(fields["caption"]), bool(fields["focused"]), tuple(areas))


def read_answer(answer: str, mode: Mode) -> Caption:
    """Read a model's answer: JSON as the prompt asks for in mode "sa", plain text in mode "da".

    Fences, thoughts and talk around the JSON are left out. JSON with small faults is mended; where it breaks off, its
    caption is taken up to the last whole sentence, as plain text is. Plain text where JSON was asked for counts as the
    caption of a picture without focus.

    Raises:
        CaptionError: the answer is empty, a refusal, or JSON without a caption.
    """
    text = _UNOPENED_THOUGHTS.sub("", _THOUGHTS.sub("", _printable(answer[:_LONGEST])))
    text = _FENCE.sub("", text).strip()
    if not text:
        raise CaptionError("expected a caption, got an empty answer; try another seed, more tokens or another model")
    if _REFUSAL.match(text):
        raise CaptionError(f"expected a caption, got a refusal ({_shown(text)}); type a caption or use another model")
    fields = _json_object(text)
    if fields is not None:
        return _from_fields(fields, text)
    if "{" not in text or (mode == "da" and not text.startswith("{")):
        return Caption(_whole_sentences(text))
    found = _CAPTION_FIELD.search(text)
    if found is None or not found[1].strip():
        raise CaptionError(f"expected JSON with a caption, got {_shown(text)}; try another seed or more tokens")
    return Caption(_whole_sentences(_printable(_unescaped(found[1]))))


def _printable(text: str) -> str:
    """Leave out what no text file or terminal takes, or what turns it: controls, marks, halves of characters."""
    kept = (char for char in text if char.isspace() or unicodedata.category(char) not in ("Cc", "Cs"))
    return "".join(char for char in kept if char not in _TURNING)


def _whole_sentences(text: str) -> str:
    """Return a text on one line, without a last sentence that breaks off behind whole ones."""
    text = " ".join(text.split())
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _from_fields(fields: dict[str, Any], text: str) -> Caption:
    caption = fields.get("caption")
    caption = _printable(caption) if isinstance(caption, str) else ""  # JSON writes any character in plain ones
    if not caption.strip():
        raise CaptionError(f"expected JSON with a caption, got {_shown(text)}; try another seed or another model")
    if _REFUSAL.match(caption):
        raise CaptionError(f"expected a caption, got a refusal ({_shown(caption)}); type a caption instead")
    given = fields.get("focal_areas")
    areas = tuple(area for each in (given if isinstance(given, list) else []) if (area := _area(each)))
    focused = fields.get("focused", bool(areas))
    return Caption(" ".join(caption.split()), focused is True, areas if focused is True else ())


def _area(given: Any) -> FocalArea | None:
    if isinstance(given, str):
        given = {"name": given}
    name = given.get("name") if isinstance(given, dict) else None
    name = " ".join(_printable(name).split()) if isinstance(name, str) else ""
    if not name:
        return None
    return FocalArea(name, _box(given.get("box")))


def _box(given: Any) -> Fractions | None:
    """Turn thousandths into fractions; None for what is no box."""
    if not isinstance(given, list) or len(given) != 4:
        return None
    if not all(isinstance(side, int | float) and not isinstance(side, bool) for side in given):
        return None
    left, top, right, bottom = (min(max(side, 0), BOX_UNITS) / BOX_UNITS for side in given)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _json_object(text: str) -> dict[str, Any] | None:
    """Return the first JSON object with a caption in a text, whose last brackets or commas may be wrong."""
    decoder = json.JSONDecoder(strict=False)  # takes line breaks inside strings
    for start in islice((match.start() for match in re.finditer(r"\{", text)), _TRIES):
        inner = re.sub(r",\s*([}\]])", r"\1", text[start:])
        for candidate in (text[start:], inner, inner + "}"):
            try:
                found, _ = decoder.raw_decode(candidate)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and "caption" in found:
                return found
    return None


def _unescaped(text: str) -> str:
    try:
        return json.loads(f'"{text}"', strict=False)
    except ValueError:
        return text


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else text[:77] + "...")
