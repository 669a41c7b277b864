"""A guider's conditioning cut to tiles: what has the latents' shape, masks, areas, and LR latents with their origin."""

from typing import Any

import torch
from comfy.conds import CONDNoiseShape
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ..eam_core.lr_memory import LRMemories
from ..eam_core.tiling import Box
from .hooks import LR_COND, check_lr_size
from .lr_memory import Origin, TileLR
from .tile_conditioning import Cond

UNCUT = {"control": "a ControlNet", "gligen": "GLIGEN"}
"""What core cannot cut to a tile, as conditioning holds it and as people call it."""

_FEATHER = 8  # latents; core fades the inner edges of an area over as many


def conds_for_tiles(conds: list[Cond], boxes: list[Box], x: Tensor, memories: LRMemories) -> list[Cond]:
    """Cut conditioning to tiles that are stacked tile-major along the batch axis.

    Args:
        conds: as core keeps them while sampling.
        boxes: of the tiles.
        x: the whole latents [B, C, H, W].
        memories: where a control keeps what it remembers of the tiles' LR latents.

    Returns:
        The conditioning of the tiles; entries whose area or mask lies beside them are left out.

    Raises:
        ValueError: LR latents of another size; a ControlNet or GLIGEN, whose hint core cannot cut to a tile.
    """
    tiled_conds = []
    for cond in conds:
        for key, name in UNCUT.items():
            if key in cond:
                raise ValueError(
                    f"expected conditioning that can be cut into tiles, got {name}; remove it, or set tile to the "
                    "size of the result"
                )
        if LR_COND in cond["model_conds"]:
            check_lr_size(cond["model_conds"][LR_COND].cond, x)
        out = {**cond, "model_conds": {k: _cut_cond(v, boxes, len(x)) for k, v in cond["model_conds"].items()}}
        _name_origin(out, cond, boxes, memories)
        mask = _mask(cond, x)
        if mask is not None:
            out["mask"] = _cut(repeat_to_batch_size(mask, len(x)), boxes)
            out.pop("area", None)
            if not out["mask"].any():
                continue
        tiled_conds.append(out)
    return tiled_conds


def whole_conds(conds: list[Cond], boxes: list[Box], x: Tensor, memories: LRMemories) -> list[Cond]:
    """Return conditioning as it is for a picture in one tile, except that its LR latents say whose they are."""
    named = []
    for cond in conds:
        named.append(dict(cond))
        if LR_COND in cond["model_conds"]:
            lr = cond["model_conds"][LR_COND].process_cond(batch_size=len(x), area=None)
            named[-1]["model_conds"] = {**cond["model_conds"], LR_COND: lr}
            _name_origin(named[-1], cond, boxes, memories)
    return named


def _cut_cond(cond: Any, boxes: list[Box], batch: int) -> Any:
    """Cut what has the latents' shape; repeat everything else for each tile."""
    cond = cond.process_cond(batch_size=batch, area=None)
    if isinstance(cond, CONDNoiseShape):
        return CONDNoiseShape(_cut(cond.cond, boxes))
    return cond.process_cond(batch_size=batch * len(boxes), area=None)


def _name_origin(cut: Cond, whole: Cond, boxes: list[Box], memories: LRMemories) -> None:
    """Let the LR latents of tiles say whose they are, so that what a control remembers of them can be found again."""
    if LR_COND in whole["model_conds"] and not whole.get("hooks"):  # which may change the base from step to step
        source, tiles = whole["model_conds"][LR_COND].cond, cut["model_conds"][LR_COND].cond
        origin = Origin(memories, source, tuple(boxes), len(tiles))
        cut["model_conds"] = {**cut["model_conds"], LR_COND: TileLR(tiles, origin)}


def _cut(tensor: Tensor, boxes: list[Box]) -> Tensor:
    return torch.cat([tensor[..., top : top + height, left : left + width] for top, left, height, width in boxes])


def _mask(cond: Cond, x: Tensor) -> Tensor | None:
    """Return the weights [1 or B, H, W] that a mask, an area or both give to a conditioning; None for none."""
    mask, area = cond.get("mask"), cond.get("area")
    if area is None:
        return mask
    height, width, top, left = area
    rows = _extent(height, top, x.shape[-2], feather=mask is None)
    columns = _extent(width, left, x.shape[-1], feather=mask is None)
    weights = (rows[:, None] * columns)[None].to(x)
    return weights if mask is None else mask * weights


def _extent(size: int, start: int, side: int, *, feather: bool) -> Tensor:
    """Return weights along one axis: 1 inside, fading towards edges that are not the picture's own, 0 outside."""
    size = min(size, side - start)
    weights = torch.ones(size)
    num_faded = min(_FEATHER, size // 4) if feather else 0
    ramp = torch.arange(1, num_faded + 1) / max(num_faded, 1)
    if start > 0:
        weights[:num_faded] *= ramp
    if start + size < side:
        weights[size - num_faded :] *= ramp.flip(0)
    return torch.nn.functional.pad(weights, (start, side - start - size))
