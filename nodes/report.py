"""EAM_Report: how faithful a restoration is, what may be wrong with it, and what it took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from .types import advanced, schema, to_core

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import Tensor

    from ..eam_core.tiling import TileGrid


class Report(io.ComfyNode):
    """EAM_Report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs."""
        tiles = [
            advanced(io.Int.Input(name, default=0, min=0, max=limit, step=16, optional=True, tooltip=tip))
            for name, limit, tip in (
                ("tile", 4096, "The sampler's tile in pixels, for seams. 0: the size that model likes."),
                ("overlap", 2048, "The sampler's overlap in pixels. 0: what a sampler with that model takes at 0."),
            )
        ]
        return schema(
            search_aliases=[
                *("quality metrics", "image quality", "PSNR", "SSIM", "delta E", "color difference", "seam check"),
                *("NaN check", "black image check", "benchmark", "timing", "VRAM peak"),
            ],
            node_id="EAM_Report",
            display_name="EAM Report",
            description="Measures a restored image against its original: PSNR and SSIM of the reduced result, color "
            "shift, seams of tiles, black or broken values, and the run's seconds and peak memory.",
            is_output_node=True,
            inputs=[
                io.Image.Input("restored", tooltip="The result, or a batch of them."),
                io.Image.Input(
                    "original",
                    tooltip="The low-resolution image that was restored: one, or one for each result. The scale is "
                    "found from the sizes.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The sampler's model, from EAM Apply Control or EAM Upscale. It knows its tiles, so that "
                    "seams can be measured.",
                ),
                *tiles,
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="Warnings and measures in sentences."),
                io.String.Output(display_name="table", tooltip="A Markdown table with a row per image."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Start the run's clock, as core asks this before it runs any node; the answer never changes."""
        from .run_clock import start_clock

        start_clock()
        return ""

    @classmethod
    def execute(
        cls, restored: Tensor, original: Tensor, model: ModelPatcher | None = None, tile: int = 0, overlap: int = 0
    ) -> io.NodeOutput:
        """Note time and memory, then measure each image."""
        from ..eam_core.report_text import describe, table
        from .run_clock import cost_so_far

        cost = cost_so_far()
        grid = tile_grid(restored.shape[1], restored.shape[2], model, tile, overlap)
        measures = measure_batch(to_core(restored), to_core(original), grid)
        text = describe(measures, cost)
        return io.NodeOutput(text, table(measures, cost), ui=ui.PreviewText(text))


def tile_grid(height: int, width: int, model: ModelPatcher | None, tile: int, overlap: int) -> TileGrid | None:
    """Return where the sampler's tiles lie in a result, in pixels; None where that cannot be told."""
    from ..eam_core.model.autoencoder import DOWNSCALE
    from ..eam_core.presets import SD3, chosen_tiles
    from ..eam_core.tile_plan import overlapping_tiles
    from ..eam_core.tiling import TileGrid
    from .patcher import native_tile

    if (model is None and not tile) or height % DOWNSCALE or width % DOWNSCALE:
        return None
    native = (SD3.tile, SD3.overlap) if model is None else native_tile(model)
    tile, overlap = chosen_tiles(tile, overlap, native)
    height, width, tile, overlap = (length // DOWNSCALE for length in (height, width, tile, overlap))
    return overlapping_tiles(TileGrid(height=height, width=width, tile=tile, overlap=overlap)).scaled(DOWNSCALE)


def measure_batch(restored: Tensor, original: Tensor, grid: TileGrid | None) -> list[Any]:
    """Measure results [B, 3, H, W] against one original or as many, one at a time; returns `eam_core`'s Measures."""
    import comfy.model_management

    from ..eam_core.report import check_pair, measure

    check_pair(restored, original)
    measures = []
    for index in range(len(restored)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        other = min(index, len(original) - 1)
        measures.append(measure(restored[index : index + 1], original[other : other + 1], grid))
    return measures
