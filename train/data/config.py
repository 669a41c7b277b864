"""What the data layer is told, and what it hands out."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from eam_core.errors import EAMError

CROP_MULTIPLE = 16  # pixels of one token


class DataError(EAMError):
    """Training data is missing, unusable, or cannot be shared out as asked."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Say where training pictures come from and how crops are cut.

    Attributes:
        data: sources: a folder, a .tar, a folder of .tar shards, a pattern such as "shards/{00000..00031}.tar", or
            NAME=PATH with the name of a layout (DIV2K, Flickr2K, LSDIR, OST, FFHQ).
        crop_sizes: pixels; each step draws one of them, and the batch shrinks so that its pixels stay as many.
        captions: kind of caption wanted; "none" hands out empty ones.
        caption_dir: folder of captions that train.caption has written; those beside the pictures serve where it has
            none.
        held_out: one picture in so many, chosen by a hash of its key, is kept for validation; 0: none.
        crop_tries: places drawn per crop; the one with most detail is taken.
        num_workers: processes that decode pictures, per training process; 0: the training process itself.
    """

    data: tuple[str, ...] = ()
    crop_sizes: tuple[int, ...] = (512,)
    captions: Literal["none", "sa", "da"] = "none"
    caption_dir: str = ""
    held_out: int = 50
    crop_tries: int = 2
    num_workers: int = 1

    def __post_init__(self) -> None:
        wrong = [size for size in self.crop_sizes if size < CROP_MULTIPLE or size % CROP_MULTIPLE]
        if wrong or not self.crop_sizes:
            raise ValueError(
                f"expected crop_sizes that are multiples of {CROP_MULTIPLE}, got {list(self.crop_sizes)}; "
                "use for example 512"
            )
        if self.captions not in ("none", "sa", "da"):
            raise ValueError(f'expected captions "none", "sa" or "da", got {self.captions!r}; choose one of them')
        if self.caption_dir and self.captions == "none":
            raise ValueError('expected captions "sa" or "da" with a caption_dir, got "none"; choose one of them')
        if self.held_out < 0 or self.held_out == 1:
            raise ValueError(f"expected held_out 0 (none) or at least 2, got {self.held_out}; 50 keeps one in 50")
        if self.crop_tries < 1:
            raise ValueError(f"expected crop_tries of at least 1, got {self.crop_tries}; 2 prefers detail a little")
        if self.num_workers < 0:
            raise ValueError(f"expected num_workers of at least 0, got {self.num_workers}; 0 uses no extra process")


@dataclass(frozen=True)
class Batch:
    """Hold one micro-batch of crops.

    Attributes:
        hr: [B,3,S,S], uint8.
        seeds: [B], int64, one per sample: every later draw for that sample comes from it.
        keys: names of the pictures.
        captions: one text per picture, "" where none is wanted.
    """

    hr: Tensor
    seeds: Tensor
    keys: list[str]
    captions: list[str]
