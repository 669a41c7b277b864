"""What a run of EAM_SubjectCaption needs: a typed caption or a model's, tiles, the cache, progress and interrupts."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from torch import Tensor

from ..eam_core.captioning.cache import CaptionCache
from ..eam_core.captioning.caption import Caption
from ..eam_core.captioning.captioner import CaptionConfig, SubjectCaptioner, TileCaption, report, tile_boxes
from ..eam_core.captioning.messages import CaptionError, Generator
from ..eam_core.presets import SD3
from ..eam_core.tiling import Box

_LEAST_TILE = 8  # pixels of the small image


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Tiles of the result, in its pixels, `scale` times the image's; 0 stands for what SD3 likes."""

    scale: float
    tile: int
    overlap: int

    def boxes(self, picture: Tensor) -> list[Box]:
        """Lay the tiles over a small picture [3,H,W].

        Raises:
            CaptionError: they are too small, or overlap too much.
        """
        tile = self.tile or SD3.tile
        overlap = self.overlap or tile // 4
        try:
            return tile_boxes(picture.shape[-2:], self.scale, tile, overlap)
        except ValueError as error:
            least = math.ceil(_LEAST_TILE * self.scale)
            raise CaptionError(
                f"expected tiles of at least {least} pixels that overlap by less than a tile, got tile {tile} and "
                f"overlap {overlap}; SD3 likes {SD3.tile} and {SD3.overlap}"
            ) from error


class Progress:
    """Show tokens and tiles on the node, and stop when the user does; the bar never runs backwards."""

    def __init__(self, num_captions: int, max_tokens: int):
        self.bar = comfy.utils.ProgressBar(num_captions * max_tokens)
        self.num_captions, self.max_tokens, self.finished = num_captions, max_tokens, 0

    def on_token(self, tokens: int, most: int) -> None:
        """Note how far the present caption has come."""
        self._show(self.finished * self.max_tokens + min(tokens, self.max_tokens))

    def on_caption(self, *_: int) -> None:
        """Note that one more caption is there."""
        self.finished += 1
        self._show(self.finished * self.max_tokens)

    def _show(self, value: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(max(value, self.bar.current), self.num_captions * self.max_tokens)


def describe(
    picture: Tensor, typed: str, captioner: Generator | None, config: CaptionConfig, tiles: Tiles | None
) -> tuple[Caption, list[TileCaption]]:
    """Caption a picture and its tiles.

    Args:
        picture: [3,H,W] in [0,1].
        typed: a caption by hand, which is taken as it is; empty asks the model.
        captioner: the model; without one the caption is what was typed.
        config: what kind of captions are wanted.
        tiles: which to caption by themselves; None gives the picture's caption to all of it.

    Raises:
        CaptionError: the model cannot be used or gives no usable answer, or tiles that cannot be laid.
    """
    caption = Caption(typed.strip())
    boxes = tiles.boxes(picture) if tiles and captioner else []
    if captioner and (boxes or not caption.caption):
        cache = CaptionCache(Path(folder_paths.get_user_directory()) / "eam" / "captions")
        model = SubjectCaptioner(captioner, cache)
        progress = Progress(1 + len(boxes), config.generate.max_tokens)
        if not caption.caption:
            caption = model.caption(picture, config, progress.on_token)
        progress.on_caption()
        if boxes:
            return caption, model.caption_tiles(picture, boxes, caption, config, progress.on_caption, progress.on_token)
    return caption, [TileCaption((0.0, 0.0, 1.0, 1.0), caption)]


def as_report(caption: Caption, tiles: list[TileCaption]) -> str:
    """Write what `python -m eam_core caption` prints."""
    return json.dumps(report(caption, tiles), ensure_ascii=False)
