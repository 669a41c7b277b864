"""What models with text are told: a caption of each picture, and what no picture shall show."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eam_core.pipeline import Restorer
from train.data.captions import Captions, check_caption_dir, find_caption
from train.data.config import DataError
from train.data.samples import SIDECAR_KINDS, Sample
from train.evaluation.models import Model

ENCODED_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Words:
    """What models are told besides the pictures.

    Attributes:
        captions: kind of caption; "none" tells them nothing of a picture.
        caption_dir: folder of captions that train.caption has written; those beside the pictures serve where it has
            none.
        negative_prompt: what no picture shall show.
    """

    captions: Captions = "none"
    caption_dir: str = ""
    negative_prompt: str = ""

    def __post_init__(self):
        if self.caption_dir and self.captions == "none":
            raise ValueError('expected captions "sa" or "da" with --caption-dir, got "none"; choose one of them')


def words_for(model: Model, words: Words) -> Words:
    """Return what of the words reaches a model; one sentence says why nothing does."""
    if words == Words() or not model.deaf_because:
        return words
    print(f"{model.name}: captions and negative prompt are left out, {model.deaf_because}", file=sys.stderr)
    return Words()


def captions_of(pictures: Sequence[Path], words: Words) -> dict[str, str]:
    """Read the captions of pictures in one folder, by their names without suffix.

    train.caption names a caption by the folder's name and the picture's. Results of another folder with the same
    pictures serve as well: name the folder that holds the captions themselves.

    Raises:
        DataError: pictures have no caption, or the folder of captions is missing.
    """
    check_caption_dir(words.caption_dir)
    if words.captions == "none":
        return {path.stem: "" for path in pictures}
    found = {path: _caption(path, words) for path in pictures}
    missing = [path for path, caption in found.items() if not caption]
    if missing:
        where = f"{words.caption_dir} or beside it" if words.caption_dir else "the same folder"
        raise DataError(
            f"{missing[0]}: expected its caption {missing[0].stem}.{words.captions}.txt in {where}, found none, as for "
            f"{len(missing)} of {len(found)} pictures; write it with python -m train.caption, or run without captions."
        )
    return {path.stem: caption or "" for path, caption in found.items()}


def encode_at_once(restorer: Restorer, prompts: Sequence[str]) -> None:
    """Have text encoders read all prompts now: they are loaded anew for each call, and remember what they have read."""
    prompts = list(dict.fromkeys(prompts))
    for start in range(0, len(prompts), ENCODED_AT_ONCE):
        restorer.text.encode(prompts[start : start + ENCODED_AT_ONCE])


def _caption(path: Path, words: Words) -> str | None:
    beside = {kind: path.with_name(f"{path.stem}.{kind}") for kind in SIDECAR_KINDS}
    sidecars = {kind: file.read_bytes() for kind, file in beside.items() if file.is_file()}
    for key in (f"{path.parent.resolve().name}/{path.stem}", path.stem):
        caption = find_caption(Sample(key, b"", sidecars), words.captions, words.caption_dir)
        if caption:
            return caption
    return None
