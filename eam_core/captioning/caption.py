"""A caption with what it is about, and how it is read out of a model's answer."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from .messages import CaptionError

Mode = Literal["sa", "da"]

_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:json)?\s*|```")
_CAPTION_FIELD = re.compile(r'"caption"\s*:\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_REFUSAL = re.compile(
    r"^\W*(i['’]?m sorry|sorry\b|i (can ?not|can['’]t|am (unable|not able)|won['’]t)|unfortunately,? i|as an ai)",
    re.IGNORECASE,
)
BOX_UNITS = 1000  # boxes are asked for, and answered, in thousandths of the picture's sides


@dataclass(frozen=True)
class FocalArea:
    """Name a thing that the picture is about.

    Attributes:
        name: as the model calls it.
        box: left, top, right, bottom as fractions of the picture; None where the model gives none.
    """

    name: str
    box: tuple[float, float, float, float] | None = None


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

    Fences, thoughts and talk around the JSON are left out. JSON that breaks off still gives its caption; plain text
    where JSON was asked for counts as the caption of a picture without focus.

    Raises:
        CaptionError: the answer is empty, a refusal, or JSON without a caption.
    """
    text = _FENCE.sub("", _THOUGHTS.sub("", answer)).strip()
    if not text:
        raise CaptionError("expected a caption, got an empty answer; try another seed, more tokens or another model")
    if _REFUSAL.match(text):
        raise CaptionError(f"expected a caption, got a refusal ({_shown(text)}); type a caption or use another model")
    fields = _json_object(text) if "{" in text else None
    if fields is not None:
        return _from_fields(fields, text)
    if "{" not in text:
        return Caption(" ".join(text.split()))
    found = _CAPTION_FIELD.search(text)
    if found is None:
        raise CaptionError(f"expected JSON with a caption, got {_shown(text)}; try another seed or more tokens")
    return Caption(" ".join(_unescaped(found[1]).split()))


def _from_fields(fields: dict[str, Any], text: str) -> Caption:
    caption = fields.get("caption")
    if not isinstance(caption, str) or not caption.strip():
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
    if not isinstance(name, str) or not name.strip():
        return None
    return FocalArea(name.strip(), _box(given.get("box")))


def _box(given: Any) -> tuple[float, float, float, float] | None:
    """Turn thousandths into fractions; None for what is no box."""
    if not isinstance(given, list) or len(given) != 4:
        return None
    if not all(isinstance(side, int | float) and not isinstance(side, bool) for side in given):
        return None
    left, top, right, bottom = (min(max(float(side) / BOX_UNITS, 0.0), 1.0) for side in given)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _json_object(text: str) -> dict[str, Any] | None:
    """Return the first JSON object in a text."""
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
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
