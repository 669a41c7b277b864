"""Prompts of parts of a picture: encoded from captions, and chosen and blended for the tiles of a sampler.

Each distinct prompt is one more list beside "positive" and "negative" in a guider, so that core and wrappers prepare
it as they prepare those: a copy of the positive list with another text. Blending is core's own weighing of entries.
"""

import logging
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..eam_core.errors import CheckpointError
from ..eam_core.tiling import Box
from .conditioning import Conditioning
from .embedded import NullTokenizer
from .lr_memory import TileLR

if TYPE_CHECKING:
    from ..eam_core.captioning.captioner import TileCaption

Cond = dict[str, Any]
Fractions = tuple[float, float, float, float]
"""left, top, right, bottom as fractions of the picture"""
TileConditioning = list[tuple[Fractions, Conditioning]]
Predict = Callable[[Tensor, list[Box]], Tensor]
Cut = Callable[[str, list[Box]], list[Cond]]


def encode_captions(clip: comfy.sd.CLIP | None, captions: "Iterable[TileCaption]") -> TileConditioning:
    """Encode the captions of tiles; equal texts are encoded once and share one conditioning.

    The embedded model's encoder knows no text: a warning says so, and its null text comes out for every tile.

    Raises:
        CheckpointError: the text encoder is missing.
    """
    if clip is None:
        raise CheckpointError(
            "expected SD3's text encoders for tile prompts, got none; connect the CLIP of a checkpoint that holds "
            "them or of TripleCLIPLoader, or remove EAM_EncodeTileCaptions"
        )
    if isinstance(getattr(clip, "tokenizer", None), NullTokenizer):
        logging.warning("EAM: the embedded model knows no text; tile captions have no effect")
    tiles = [(tile.box, tile.caption.caption) for tile in captions]
    texts = list(dict.fromkeys(text for _, text in tiles))
    bar, encoded = comfy.utils.ProgressBar(len(texts)), {}
    for text in texts:
        comfy.model_management.throw_exception_if_processing_interrupted()
        encoded[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        bar.update(1)
    return [(box, encoded[text]) for box, text in tiles]


class TilePrompts:
    """The prompts of a run and how strongly they count; without prompts or strength it leaves everything as it is."""

    def __init__(self, prompts: TileConditioning, strength: float):
        """Keep prompts and the weight in [0, 1] of a tile's prompt; the global prompt has the rest."""
        prompts = prompts if strength > 0 else []
        self.strength = strength
        distinct = {id(conditioning): conditioning for _, conditioning in prompts}
        keys = {number: f"eam_tile_{index}" for index, number in enumerate(distinct)}
        self.texts = {keys[number]: conditioning for number, conditioning in distinct.items()}
        self.places = [(box, keys[id(conditioning)]) for box, conditioning in prompts]

    def conds(self, positive: list[Cond]) -> dict[str, list[Cond]]:
        """Return the lists to add to a guider's: the positive one with each distinct prompt as its text.

        Raises:
            CheckpointError: the prompts come from another kind of text encoder than the positive conditioning.
        """
        own = {}
        for key, parts in self.texts.items():
            pairs = ((entry, *part) for entry in positive for part in parts)
            own[key] = [entry for pair in pairs if (entry := _with_text(*pair)) is not None]
        return own

    def key(self, box: Box, size: Sequence[int]) -> str | None:
        """Return the name of the prompt whose place overlaps a tile most; None where none does.

        Of equal ones the smallest wins, then the nearest.

        Args:
            box: of the tile.
            size: height and width of the whole, in the box's units.
        """
        height, width = size
        top, left, tall, wide = box
        tile = (left / width, top / height, (left + wide) / width, (top + tall) / height)
        key, best = None, (0.0, 0.0, 0.0)
        for place, name in self.places:
            overlap = round(_area(_both(place, tile)), 6)
            rank = (overlap, -round(_area(place), 6), -round(_distance(place, tile), 6))
            if overlap > 0 and (key is None or rank > best):
                key, best = name, rank
        return key

    def positive(self, cut: Cut, boxes: list[Box], size: Sequence[int]) -> list[Cond]:
        """Return the positive conditioning of tiles that `in_groups` lets run together.

        Entries that core spreads over what others leave free ("default") keep the global prompt: it gives them no
        strengths.

        Args:
            cut: gives a list of the guider's, cut to tiles that are stacked along the batch axis.
            boxes: of the tiles.
            size: height and width of the whole.
        """
        keys = [self.key(box, size) for box in boxes]
        whole = cut("positive", boxes)
        if keys[0] is None:
            return whole
        cuts = {key: cut(key, boxes) for key in dict.fromkeys(keys) if key is not None}
        own = cuts[keys[0]]
        if len(cuts) > 1:
            own = [_one_per_tile(entries) for entries in zip(*(cuts[key] for key in keys if key), strict=True)]
        weighed = [(1 - self.strength, entry) for entry in whole] + [(self.strength, entry) for entry in own]
        return [entry for entry in whole if "default" in entry] + [
            {**entry, "strength": entry.get("strength", 1.0) * weight}
            for weight, entry in weighed
            if weight > 0 and "default" not in entry
        ]

    def in_groups(self, predict: Predict, conds: dict[str, list[Cond]], size: Sequence[int]) -> Predict:
        """Return `predict` with tiles of a batch run apart where their prompts cannot be stacked.

        Texts of different lengths cannot: in a joint attention, padding would change the result.

        Args:
            predict: called as predict(tiles, boxes), with tiles stacked tile-major along the batch axis.
            conds: the guider's lists, prepared by core.
            size: height and width of the whole.
        """

        def grouped(tiles: Tensor, boxes: list[Box]) -> Tensor:
            groups: dict[Any, list[int]] = defaultdict(list)
            for index, box in enumerate(boxes):
                key = self.key(box, size)
                groups[key and _layout(conds[key])].append(index)
            if len(groups) == 1:
                return predict(tiles, boxes)
            batch = len(tiles) // len(boxes)
            parts, results = tiles.split(batch), {}
            for indices in groups.values():
                result = predict(torch.cat([parts[index] for index in indices]), [boxes[index] for index in indices])
                results |= zip(indices, result.split(batch))
            return torch.cat([results[index] for index in range(len(boxes))])

        return grouped


def _with_text(entry: Cond, context: Tensor, extra: dict[str, Any]) -> Cond | None:
    """Return a positive entry with another text; None where the two are never in force at once."""
    expected, got = entry["cross_attn"].shape[-1], context.shape[-1]
    if expected != got:
        raise CheckpointError(
            f"expected tile prompts of {expected} channels like the positive conditioning, got {got}; encode both with "
            "the same CLIP"
        )
    changes = {"cross_attn": context, "uuid": uuid.uuid4()}
    changes |= {name: extra[name] for name in ("pooled_output",) if name in extra}
    if "clip_start_percent" in extra:  # scheduled hooks on the CLIP: one encoding for each range of the sampling
        start = max(extra["clip_start_percent"], entry.get("clip_start_percent", 0.0))
        end = min(extra["clip_end_percent"], entry.get("clip_end_percent", 1.0))
        if start >= end:
            return None
        changes |= {"clip_start_percent": start, "clip_end_percent": end}
    return {**entry, **changes}


def _layout(conds: list[Cond]) -> tuple[Any, ...]:
    """Return what two prompts must have in common to be stacked."""
    return tuple(
        (
            entry.get("timestep_start"),
            entry.get("timestep_end"),
            *((name, _shape(cond.cond)) for name, cond in sorted(entry["model_conds"].items())),
        )
        for entry in conds
    )


def _shape(value: Any) -> Any:
    """Return a tensor's shape without its batch; anything else can be shared, but not stacked."""
    return value.shape[1:] if isinstance(value, Tensor) else id(value)


def _one_per_tile(entries: Sequence[Cond]) -> Cond:
    """Join entries that were each cut to all tiles: the first gives the first tile's part, and so on."""
    num_tiles, model_conds = len(entries), {}
    for name, first in entries[0]["model_conds"].items():
        values = [entry["model_conds"][name].cond for entry in entries]
        same = isinstance(first, TileLR) and all(first.same(entry["model_conds"][name]) for entry in entries)
        if isinstance(first.cond, Tensor) and not same:
            parts = [value.chunk(num_tiles)[tile] for tile, value in enumerate(values)]
            first = first._copy_with(torch.cat(parts))
        model_conds[name] = first
    return {**entries[0], "model_conds": model_conds}


def _both(a: Fractions, b: Fractions) -> Fractions:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _area(box: Fractions) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _distance(a: Fractions, b: Fractions) -> float:
    """Return a number that grows with the distance between the centres of two boxes."""
    return sum((a[low] + a[low + 2] - b[low] - b[low + 2]) ** 2 for low in (0, 1))
