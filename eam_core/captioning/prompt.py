"""The versioned prompt: an instruction, example pictures with ideal answers (EAM section 3.3), and the picture.

The words are data, in assets/captioning/prompt_v*.json, and this project's own: the paper does not print its templates.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ..images import load_image, resize
from .caption import Mode
from .messages import Conversation, Message

FOLDER = Path(__file__).parent.parent / "assets" / "captioning"
CURRENT = "1"
LONGEST_SIDE = 1024  # pixels; larger pictures are reduced before a model sees them, which saves it tokens


@dataclass(frozen=True)
class Example:
    """Show one picture [3,H,W] with its ideal answer."""

    picture: Tensor
    answer: str
    focused: bool


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Hold the words of one version.

    Attributes:
        version: part of every cache key.
        texts: "instruction" and "question" by mode.
        tile: how a part of a photo is introduced, with {caption}.
        extra: how the user's own instruction is added, with {instruction}.
        examples: focused and unfocused pictures, for mode "sa".
    """

    version: str
    texts: dict[Mode, dict[str, str]]
    tile: str
    extra: str
    examples: tuple[Example, ...]

    def conversation(self, picture: Tensor, mode: Mode, *, extra: str = "", whole: str = "") -> Conversation:
        """Return what a model is asked about a picture.

        Args:
            picture: [3,H,W] in [0,1].
            mode: "sa" with the examples, "da" without, as captions are written traditionally.
            extra: an instruction of the user's.
            whole: caption of the photo that the picture is a part of.
        """
        system = self.texts[mode]["instruction"]
        if extra:
            system += " " + self.extra.format(instruction=extra.strip())
        question = self.texts[mode]["question"]
        messages = [Message("system", (system,))]
        for example in self.examples if mode == "sa" else ():
            messages += [Message("user", (example.picture, question)), Message("assistant", (example.answer,))]
        if whole:
            question = f"{self.tile.format(caption=whole)} {question}"
        return (*messages, Message("user", (_reduced(picture), question)))


@lru_cache
def load_prompt(version: str = CURRENT) -> Prompt:
    """Read a version of the prompt with its example pictures."""
    data = json.loads((FOLDER / f"prompt_v{version}.json").read_text(encoding="utf-8"))
    return Prompt(
        version=data["version"],
        texts={"sa": data["sa"], "da": data["da"]},
        tile=data["tile"],
        extra=data["extra"],
        examples=tuple(_example(fields) for fields in data["examples"]),
    )


def _example(fields: dict[str, Any]) -> Example:
    answer = {name: fields[name] for name in ("focused", "focal_areas", "caption")}
    picture = load_image(FOLDER / fields["file"]).rgb[0]
    return Example(picture, json.dumps(answer, ensure_ascii=False), fields["focused"])


def _reduced(picture: Tensor) -> Tensor:
    height, width = picture.shape[-2:]
    shrink = LONGEST_SIDE / max(height, width)
    if shrink >= 1:
        return picture
    return resize(picture[None], (max(1, round(height * shrink)), max(1, round(width * shrink))))[0]
