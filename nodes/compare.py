"""EAM_Compare: two batches side by side in the browser, with PSNR and SSIM of each pair."""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from .kept_pictures import serve_kept_pictures
from .types import advanced, schema, to_core

if TYPE_CHECKING:
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
    def execute(cls, before: Tensor, after: Tensor, before_label: str = "", after_label: str = "") -> io.NodeOutput:
        """Save both as temporary previews, under the keys that image comparers read, and measure each pair."""
        names = [given.strip() or usual for given, usual in zip((before_label, after_label), LABELS)]
        pairs = [{**pair, "labels": names} for pair in measure_pairs(before, after)]
        run = secrets.token_hex(4)  # so that a saved workflow never finds pictures of another run under its names
        saved = {
            key: ui.ImageSaveHelper.save_images(images, f"eam_{key}_{run}", io.FolderType.temp, cls, compress_level=1)
            for key, images in (("a_images", before), ("b_images", after))
        }
        return io.NodeOutput(ui={**saved, "eam_compare": pairs})


def measure_pairs(before: Tensor, after: Tensor) -> list[dict[str, Any]]:
    """Pair two batches and compare each pair; the shorter batch repeats its last image.

    Args:
        before: IMAGE [B, H, W, C].
        after: IMAGE, of any other batch and size.

    Returns:
        for each pair what JSON can hold: numbers of the two images (a, b), their sizes [width, height], equal, psnr
        in dB (None where equal or not finite), ssim (None for images too small or not finite) and a note.

    Raises:
        ImageError: a batch is empty.
    """
    from ..eam_core.errors import ImageError

    if not len(before) or not len(after):
        raise ImageError(f"expected images in before and after, got {len(before)} and {len(after)}; connect both")
    shared = _note(before, after)
    pairs = []
    for number in range(max(len(before), len(after))):
        a, b = min(number, len(before) - 1), min(number, len(after) - 1)
        figures = _figures(to_core(before[a : a + 1]).clamp(0, 1), to_core(after[b : b + 1]).clamp(0, 1))
        sizes = {"a_size": [before.shape[2], before.shape[1]], "b_size": [after.shape[2], after.shape[1]]}
        pairs.append({"a": a, "b": b, **sizes, **figures, "note": shared})
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


def _note(before: Tensor, after: Tensor) -> str:
    """Say in a sentence each what was done to sizes and batches; empty if nothing was."""
    notes = []
    (ah, aw), (bh, bw) = before.shape[1:3], after.shape[1:3]
    if (ah, aw) != (bh, bw):
        small, large = ("before", f"{bw} × {bh}") if ah * aw <= bh * bw else ("after", f"{aw} × {ah}")
        # A side that is off by one pixel after scaling is no other shape.
        stretched = abs(ah * bw - aw * bh) > max(ah, aw, bh, bw)
        shape = "; their shapes differ, so it is stretched" if stretched else ""
        notes.append(f"Sizes differ: {small} is enlarged bicubically to {large} for the figures{shape}.")
    if len(before) != len(after):
        short, count = ("before", len(before)) if len(before) < len(after) else ("after", len(after))
        repeats = "its only image" if count == 1 else f"its last image, number {count}"
        notes.append(f"Batches differ ({len(before)} and {len(after)}): {short} repeats {repeats}.")
    return " ".join(notes)
