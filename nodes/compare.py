"""EAM_Compare: two batches side by side in the browser, with PSNR and SSIM of each pair."""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from .kept_pictures import serve_kept_pictures
from .types import advanced, schema, to_core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LABELS = ("Before", "After")

serve_kept_pictures()


class Compare(io.ComfyNode):
    """EAM_Compare."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        names = [
            advanced(io.String.Input(f"{side.lower()}_label", default="", optional=True, placeholder=side, tooltip=tip))
            for side, tip in zip(LABELS, ("Name shown on the first image.", "Name shown on the second image."))
        ]
        return schema(
            search_aliases=["image comparer", "compare images", "before after", "slider", "A/B", "difference", "PSNR"],
            node_id="EAM_Compare",
            display_name="EAM Compare",
            description="Shows two images in the node and full screen: wipe, side by side, flicker or the difference, "
            "down to single pixels, with PSNR and SSIM.",
            is_output_node=True,
            is_input_list=True,  # so that pictures of a list are numbered through
            inputs=[
                io.Image.Input("before", tooltip="The first image, or a batch of them."),
                io.Image.Input(
                    "after",
                    tooltip="The second image. Of unequal sizes, the smaller is enlarged bicubically for the figures; "
                    "of unequal batches, the shorter repeats its last image.",
                ),
                *names,
            ],
        )

    @classmethod
    def execute(
        cls,
        before: list[Tensor],
        after: list[Tensor],
        before_label: Sequence[str] = ("",),
        after_label: Sequence[str] = ("",),
    ) -> io.NodeOutput:
        """Save both as temporary previews, under the keys that image comparers read, and measure each pair."""
        names = [given[0].strip() or usual for given, usual in zip((before_label, after_label), LABELS)]
        sides = [[image for batch in side for image in batch] for side in (before, after)]
        pairs = [{**pair, "labels": names} for pair in measure_pairs(*sides)]
        run = secrets.token_hex(4)  # so that a saved workflow never finds pictures of another run under its names
        saved = {
            key: save_previews(images, f"eam_{key}_{run}", cls) for key, images in zip(("a_images", "b_images"), sides)
        }
        return io.NodeOutput(ui={**saved, "eam_compare": pairs})


def save_previews(images: list[Tensor], prefix: str, node: type[io.ComfyNode]) -> list[Any]:
    """Write images into ComfyUI's temp folder as core does.

    Raises:
        DiskError: the folder cannot be written or is full.
    """
    from ..eam_core.errors import DiskError

    try:
        return ui.ImageSaveHelper.save_images(images, prefix, io.FolderType.temp, node, compress_level=1)
    except OSError as error:
        raise DiskError(
            f"expected to write previews into ComfyUI's temp folder, could not ({error.strerror or error}); free some "
            "space or make it writable"
        ) from error


def measure_pairs(before: list[Tensor], after: list[Tensor]) -> list[dict[str, Any]]:
    """Pair images and compare each pair; the shorter side repeats its last image.

    Args:
        before: images [H, W, C].
        after: others, of any number and sizes.

    Returns:
        for each pair what JSON can hold: numbers of the two images (a, b), their sizes [width, height], equal, psnr
        in dB (None where equal or not finite), ssim (None for images too small or not finite) and a note.

    Raises:
        ImageError: a side is empty.
    """
    import comfy.model_management

    from ..eam_core.errors import ImageError

    if not len(before) or not len(after):
        raise ImageError(f"expected images in before and after, got {len(before)} and {len(after)}; connect both")
    shared, pairs = _batch_note(len(before), len(after)), []
    for number in range(max(len(before), len(after))):
        comfy.model_management.throw_exception_if_processing_interrupted()
        a, b = min(number, len(before) - 1), min(number, len(after) - 1)
        figures = _figures(*(to_core(image[None]).clamp(0, 1) for image in (before[a], after[b])))
        sizes = {"a_size": [before[a].shape[1], before[a].shape[0]], "b_size": [after[b].shape[1], after[b].shape[0]]}
        alpha = _alpha_note(before[a], after[b])
        note = " ".join(filter(None, (_size_note(before[a], after[b]), alpha, shared)))
        figures["equal"] = figures["equal"] and not alpha
        pairs.append({"a": a, "b": b, **sizes, **figures, "note": note})
    return pairs


def _figures(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Compare two pictures [1, 3, H, W]; the one with fewer pixels is enlarged to the other's size."""
    from ..eam_core.images import resize
    from ..eam_core.quality import SSIM_WINDOW, psnr, ssim

    size = max(before.shape[-2:], after.shape[-2:], key=math.prod)
    before, after = (side if side.shape[-2:] == size else resize(side, tuple(size)) for side in (before, after))
    equal = bool((before == after).all())
    similarity = ssim(after, before).item() if min(size) >= SSIM_WINDOW else math.nan
    return {
        "equal": equal,
        "psnr": None if equal else _finite(psnr(after, before).item()),
        "ssim": _finite(similarity),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _size_note(before: Tensor, after: Tensor) -> str:
    """Say in a sentence what was done to images [H, W, C] of unequal sizes; empty if nothing was."""
    (ah, aw), (bh, bw) = before.shape[:2], after.shape[:2]
    if (ah, aw) == (bh, bw):
        return ""
    small, large = ("before", f"{bw} × {bh}") if ah * aw <= bh * bw else ("after", f"{aw} × {ah}")
    # A side that is off by one pixel after scaling is no other shape.
    stretched = abs(ah * bw - aw * bh) > max(ah, aw, bh, bw)
    shape = "; their shapes differ, so it is stretched" if stretched else ""
    return f"Sizes differ: {small} is enlarged bicubically to {large} for the figures{shape}."


def _alpha_note(before: Tensor, after: Tensor) -> str:
    """Say in a sentence that images [H, W, C] differ in transparency, which no figure counts; empty if they do not."""
    solid = [bool((image[..., 3:4] >= 1).all()) for image in (before, after)]
    if all(solid):
        return ""
    if before.shape[:2] != after.shape[:2]:
        return "Transparency is not compared."
    sides = (image[..., 3].clamp(0, 1) if image.shape[-1] > 3 else image.new_ones(()) for image in (before, after))
    first, second = sides
    return "" if bool((first == second).all()) else "Transparency differs; the figures compare the colours alone."


def _batch_note(num_before: int, num_after: int) -> str:
    """Say in a sentence how unequal numbers of images were paired; empty if they are equal."""
    if num_before == num_after:
        return ""
    short, count = ("before", num_before) if num_before < num_after else ("after", num_after)
    repeats = "its only image" if count == 1 else f"its last image, number {count}"
    return f"Batches differ ({num_before} and {num_after}): {short} repeats {repeats}."
