"""EAM_TiledSampler: core's samplers and schedulers with tiles, a start from the LR latents and guidance to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.samplers
from comfy_api.latest import io

from ..eam_core.presets import EMBEDDED
from .types import CATEGORY, TileConditioningType

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .tile_conditioning import TileConditioning


class TiledSampler(io.ComfyNode):
    """EAM_TiledSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs; the defaults suit the embedded model."""
        return io.Schema(
            node_id="EAM_TiledSampler",
            display_name="EAM Tiled Sampler",
            category=CATEGORY,
            description="Samples in overlapping tiles that are blended at every step, so that memory follows the tile "
            "and not the image.",
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent"),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True),
                io.Int.Input("steps", default=EMBEDDED.steps, min=1, max=1000, tooltip="SD3: about 28."),
                io.Float.Input(
                    "cfg",
                    default=EMBEDDED.cfg_scale,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="1 ignores the negative prompt and takes half the time. SD3: about 5.",
                ),
                io.Combo.Input("sampler_name", options=comfy.samplers.SAMPLER_NAMES, default=EMBEDDED.sampler),
                io.Combo.Input("scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="sgm_uniform"),
                io.Float.Input(
                    "start_sigma",
                    default=EMBEDDED.sigma_start,
                    min=0.05,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of noise to start from: 1 is pure noise, less starts from the latent. SD3: 1.",
                ),
                io.Float.Input(
                    "fidelity",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="0 lets the model decide, 1 stays closest to the low-resolution image.",
                ),
                io.Int.Input(
                    "tile", default=0, min=0, max=4096, step=16, tooltip="In pixels. 0: the size the model likes."
                ),
                io.Int.Input(
                    "overlap", default=0, min=0, max=2048, step=16, tooltip="In pixels. 0: a quarter of the tile."
                ),
                io.Int.Input("tile_batch", default=1, min=1, max=64, tooltip="Tiles at once; the result is the same."),
                io.Float.Input(
                    "cfg_end",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    optional=True,
                    tooltip="CFG falls or rises evenly to this value. 0: cfg all the way.",
                ),
                TileConditioningType.Input(
                    "tile_positive",
                    optional=True,
                    tooltip="Prompts of parts of the image. Each tile takes the one whose part it overlaps most.",
                ),
                io.Float.Input(
                    "tile_strength",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Weight of a tile's own prompt against positive. 0: positive alone. 1: the tile's alone, "
                    "in the same time. Between: the average of two predictions, in up to twice the time.",
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list[Any],
        negative: list[Any],
        latent: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        start_sigma: float,
        fidelity: float,
        tile: int,
        overlap: int,
        tile_batch: int,
        cfg_end: float = 0.0,
        tile_positive: TileConditioning | None = None,
        tile_strength: float = 0.5,
    ) -> io.NodeOutput:
        """Put the pieces together; all the work is core's and the guider's."""
        from .guider import TiledGuider
        from .sampling import make_sigmas, make_tiling, sample

        sigmas = make_sigmas(model, steps, sampler_name, scheduler, start_sigma)
        tiling = make_tiling(model, tile, overlap, tile_batch)
        guider = TiledGuider(model, tiling, cfg_start=cfg, cfg_end=cfg_end or cfg, fidelity=fidelity)
        guider.set_conds(positive, negative)
        guider.set_tile_prompts(tile_positive or [], tile_strength)
        sampler = comfy.samplers.sampler_object(sampler_name)
        return io.NodeOutput(sample(guider, latent, sampler, sigmas, seed))
