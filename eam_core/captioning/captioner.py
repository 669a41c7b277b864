"""Caption pictures, whole or in tiles: prompt, model, cache and wording put together."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from ..errors import DiskError, check_text
from ..tile_plan import overlapping_tiles
from ..tiling import Box, TileGrid
from .cache import CaptionCache, picture_hash
from .caption import Caption, FocalArea, Fractions, Mode, read_answer
from .messages import CaptionError, GenerateConfig, Generator, OnToken
from .prompt import load_prompt
from .wording import CountTokens, estimate_tokens, fitted

MIN_TILE = 8  # pixels of the small picture
ATTEMPTS = 2  # an answer that cannot be used is asked for once more, with another seed
_NEXT_SEED = 1_000_003


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Say what kind of captions are wanted.

    Attributes:
        mode: "sa" subject-aware, "da" detail-aware.
        extra: an instruction of the user's, added to the prompt's.
        generate: how answers are drawn.
    """

    mode: Mode = "sa"
    extra: str = ""
    generate: GenerateConfig = field(default_factory=GenerateConfig)

    def __post_init__(self) -> None:
        if self.mode not in ("sa", "da"):
            raise ValueError(f'expected mode "sa" or "da", got {self.mode!r}; choose one of them')
        check_text("an extra instruction", self.extra)


@dataclass(frozen=True)
class TileCaption:
    """Hold the caption of one tile.

    Attributes:
        box: where it lies: left, top, right, bottom as fractions of the picture.
        caption: boxes of its focal areas are fractions of the whole picture as well.
        error: why the model gave no caption of its own, which is then the whole picture's.
    """

    box: Fractions
    caption: Caption
    error: str = ""


class SubjectCaptioner:
    """Ask a model for captions, and keep what it answers."""

    def __init__(
        self, model: Generator, cache: CaptionCache | None = None, count: CountTokens = estimate_tokens
    ) -> None:
        """Keep the parts.

        Args:
            model: whom to ask.
            cache: where answers are kept; None asks each time.
            count: tokens of a text for CLIP and T5, of the tokenizers that will read the captions.
        """
        self.model, self.cache, self.count = model, cache, count
        self.prompt = load_prompt()

    def caption(self, picture: Tensor, config: CaptionConfig, on_token: OnToken | None = None) -> Caption:
        """Caption one picture [3,H,W] in [0,1].

        Raises:
            CaptionError: the model cannot be used or gives no usable answer.
        """
        (answer,) = self.caption_many([picture], config, on_token=on_token)
        if isinstance(answer, CaptionError):
            raise answer
        return answer

    def caption_many(
        self,
        pictures: Sequence[Tensor],
        config: CaptionConfig,
        *,
        whole: str = "",
        on_token: OnToken | None = None,
    ) -> list[Caption | CaptionError]:
        """Caption pictures [3,H,W] in [0,1] in one call of the model; one without a usable answer gives its error.

        Args:
            pictures: of any sizes.
            config: mode and sampling, the same for all.
            whole: caption of the photo that the pictures are parts of.
            on_token: called while answers grow.

        Raises:
            CaptionError: the model as such cannot be used.
        """
        self.model.prepare(on_token)
        keys = [self._key(picture, config, whole) for picture in pictures]
        kept = [self.cache.read(key) if self.cache else None for key in keys]
        found: dict[int, Caption | CaptionError] = {i: caption for i, caption in enumerate(kept) if caption}
        for attempt in range(ATTEMPTS):
            missing = [i for i in range(len(pictures)) if not isinstance(found.get(i), Caption)]
            if not missing:
                break
            draw = replace(config.generate, seed=config.generate.seed + attempt * _NEXT_SEED)
            asked = [
                self.prompt.conversation(pictures[i], config.mode, extra=config.extra, whole=whole) for i in missing
            ]
            for i, text in zip(missing, self.model.generate(asked, draw, on_token)):
                found[i] = answer = self._read(text, config.mode)
                if isinstance(answer, Caption):
                    self._keep(keys[i], answer)
        answers = [found[i] for i in range(len(pictures))]
        return [fitted(answer, self.count) if isinstance(answer, Caption) else answer for answer in answers]

    def caption_tiles(
        self,
        picture: Tensor,
        boxes: Sequence[Box],
        whole: Caption,
        config: CaptionConfig,
        on_tile: Callable[[int, int], None] | None = None,
        on_token: OnToken | None = None,
    ) -> list[TileCaption]:
        """Caption the tiles of a picture [3,H,W] one by one, with the whole picture's caption as a hint.

        Args:
            picture: in [0,1].
            boxes: top, left, height, width in its pixels.
            whole: caption of the picture; its words also serve tiles that the model gives no usable answer for.
            config: mode and sampling.
            on_tile: called as (tiles done, tiles in all); may raise to stop.
            on_token: called while an answer grows; may raise to stop.

        Raises:
            CaptionError: the model as such cannot be used, or gives no usable answer for any tile.
        """
        height, width = picture.shape[-2:]
        tiles, failed = [], None
        for number, (top, left, tall, wide) in enumerate(boxes, 1):
            part = picture[:, top : top + tall, left : left + wide]
            (answer,) = self.caption_many([part], config, whole=whole.caption, on_token=on_token)
            box = (left / width, top / height, (left + wide) / width, (top + tall) / height)
            if isinstance(answer, CaptionError):
                failed = answer
                tiles.append(TileCaption(box, Caption(whole.caption), str(answer)))
            else:
                tiles.append(TileCaption(box, _placed(answer, box)))
            if on_tile:
                on_tile(number, len(boxes))
        if failed and all(tile.error for tile in tiles):
            raise failed
        return tiles

    def _key(self, picture: Tensor, config: CaptionConfig, whole: str) -> dict[str, Any]:
        settings = {**asdict(config.generate), "mode": config.mode, "extra": config.extra, "whole": whole}
        return {
            **settings,
            "picture": picture_hash(picture),
            "model": self.model.identity,
            "prompt": self.prompt.version,
        }

    def _keep(self, key: dict[str, Any], caption: Caption) -> None:
        try:
            if self.cache:
                self.cache.write(key, caption)
        except DiskError as error:  # the caption is of use all the same
            warnings.warn(str(error), stacklevel=3)

    def _read(self, text: str | CaptionError, mode: Mode) -> Caption | CaptionError:
        if isinstance(text, CaptionError):
            return text
        try:
            caption = read_answer(text, mode)
        except CaptionError as error:
            return error
        if not fitted(caption, self.count).caption:
            return CaptionError("expected a description, got words about the picture's quality only; type a caption")
        return caption


def report(caption: Caption, tiles: Sequence[TileCaption] = ()) -> dict[str, Any]:
    """Return a caption and those of its tiles as fields for JSON."""
    return {
        **caption.as_json(),
        "tiles": [
            {
                "box": [round(side, 4) for side in tile.box],
                **tile.caption.as_json(),
                **({"error": tile.error} if tile.error else {}),
            }
            for tile in tiles
        ],
    }


def _placed(caption: Caption, box: Fractions) -> Caption:
    """Turn boxes that are fractions of a tile into fractions of the picture that the tile lies in."""
    left, top, right, bottom = box

    def place(area: FocalArea) -> FocalArea:
        if area.box is None:
            return area
        across = [left + side * (right - left) for side in area.box[::2]]
        down = [top + side * (bottom - top) for side in area.box[1::2]]
        return replace(area, box=(across[0], down[0], across[1], down[1]))

    return replace(caption, focal_areas=tuple(place(area) for area in caption.focal_areas))


def tile_boxes(size: Sequence[int], scale: float, tile: int, overlap: int) -> list[Box]:
    """Lay tiles of the enlarged picture over the small one.

    Args:
        size: height and width of the small picture in pixels.
        scale: enlargement.
        tile: side of a tile in pixels of the enlarged picture.
        overlap: least overlap of neighbours, in the same pixels.

    Returns:
        Boxes (top, left, height, width) in pixels of the small picture.

    Raises:
        ValueError: a value is out of range.
    """
    if not 1 <= scale <= 8:
        raise ValueError(f"expected a scale from 1 to 8, got {scale:g}; 4 is usual")
    if not tile >= MIN_TILE * scale or not 0 <= overlap < tile - scale:
        raise ValueError(
            f"expected a tile of at least {MIN_TILE * scale:g} pixels at scale {scale:g} and an overlap below it, got "
            f"{tile} and {overlap}; 1024 and 256 are usual"
        )
    height, width = size
    grid = TileGrid(height=height, width=width, tile=round(tile / scale), overlap=round(overlap / scale), align=1)
    return overlapping_tiles(grid).boxes
