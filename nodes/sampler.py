"""EAM_TiledSampler: core's samplers and schedulers with tiles, a start from the LR latents and guidance to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.samplers
from comfy_api.latest import io

from ..eam_core.presets import EMBEDDED
from .types import TileConditioningType, advanced, schema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .tile_conditioning import TileConditioning


class TiledSampler(io.ComfyNode):
    """EAM_TiledSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe inputs and outputs; the defaults suit the embedded model."""
        return schema(
            search_aliases=[
                "KSampler",
                "SUPIR sampler",
                "Ultimate SD Upscale",
                "Tiled Diffusion",
                "MultiDiffusion",
                "Mixture of Diffusers",
                "tiled KSampler",
                "tile upscale",
                "start from image",
                "denoise",
            ],
            node_id="EAM_TiledSampler",
            display_name="EAM Tiled Sampler",
            description="Samples in tiles that are blended, so that memory follows the tile and not the image.",
            inputs=[
                io.Model.Input("model", tooltip="From EAM Apply Control; any SD3-family MODEL works."),
                io.Conditioning.Input("positive", tooltip="From EAM Apply Control."),
                io.Conditioning.Input("negative", tooltip="From EAM Apply Control. Unused at cfg 1."),
                io.Latent.Input(
                    "latent",
                    tooltip="From EAM Apply Control: the size of the result, and what a start_sigma under 1 keeps.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Of the noise: the same seed gives the same result.",
                ),
                io.Int.Input(
                    "steps",
                    default=EMBEDDED.steps,
                    min=1,
                    max=1000,
                    tooltip="Model calls per tile. Embedded model and TSD-SR: 1. SD3: about 28. DiT4SR: 40.",
                ),
                io.Float.Input(
                    "cfg",
                    default=EMBEDDED.cfg_scale,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Pull towards the prompt. 1 ignores the negative prompt and takes half the time. Embedded "
                    "model and TSD-SR: 1. SD3: about 5. DiT4SR: 8.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.SAMPLER_NAMES,
                    default=EMBEDDED.sampler,
                    tooltip="One of ComfyUI's samplers. euler fits all; dpmpp_2m does well with SD3.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="sgm_uniform",
                    tooltip="How noise levels are spread over the steps. sgm_uniform fits most; DiT4SR: normal.",
                ),
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
                    "tile",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    tooltip="Side of a tile in pixels of the result. 0: what the model was trained for.",
                ),
                io.Int.Input(
                    "overlap",
                    default=0,
                    min=0,
                    max=2048,
                    step=16,
                    tooltip="How far neighbouring tiles overlap, in pixels of the result. 0: what suits the tile.",
                ),
                io.Int.Input(
                    "tile_batch",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Tiles at once; the result is the same. 0: as many as make it faster and fit into memory.",
                ),
                io.Float.Input(
                    "cfg_end",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    optional=True,
                    tooltip="CFG falls or rises evenly with the noise to this value. 0: cfg all the way.",
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
                io.Boolean.Input(
                    "blend_every_step",
                    default=False,
                    optional=True,
                    tooltip="Let tiles overlap in every step, not in the last ones only: up to half as much time "
                    "again. Try it where borders of tiles show.",
                ),
                *map(advanced, _cfg_window()),
            ],
            outputs=[io.Latent.Output(tooltip="The restored latents, for VAE Decode.")],
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
        blend_every_step: bool = False,
        cfg_start_percent: float = 0.0,
        cfg_end_percent: float = 1.0,
    ) -> io.NodeOutput:
        """Put the pieces together; all the work is core's and the guider's."""
        from .guider import TiledGuider
        from .sampling import STEPLESS, make_cfg_window, make_sigmas, make_tiling, sample

        sigmas = make_sigmas(model, steps, sampler_name, scheduler, start_sigma)
        tiling = make_tiling(model, tile, overlap, tile_batch, blend_every_step or sampler_name in STEPLESS)
        window = make_cfg_window(model, cfg_start_percent, cfg_end_percent)
        scales = {"cfg_start": cfg, "cfg_end": cfg_end or cfg, "cfg_window": window}
        guider = TiledGuider(model, tiling, **scales, fidelity=fidelity)
        guider.set_conds(positive, negative)
        guider.set_tile_prompts(tile_positive or [], tile_strength)
        sampler = comfy.samplers.sampler_object(sampler_name)
        return io.NodeOutput(sample(guider, latent, sampler, sigmas, seed))


def _cfg_window() -> list[io.WidgetInput]:
    percent = {"min": 0.0, "max": 1.0, "step": 0.01, "optional": True}
    return [
        io.Float.Input(
            "cfg_start_percent",
            default=0.0,
            tooltip="Where in the sampling cfg begins to act, 0 is the start. Steps before take half the time.",
            **percent,
        ),
        io.Float.Input(
            "cfg_end_percent",
            default=1.0,
            tooltip="Where in the sampling cfg stops acting, 1 is the end. Steps after take half the time.",
            **percent,
        ),
    ]
