"""The settings of one restoration, checked before any work is done."""

import math
from dataclasses import dataclass, fields
from typing import Any

from .color import COLOR_FIXES, ColorFix
from .errors import check_text
from .flow import schedule
from .images import check_scale
from .model.autoencoder import DOWNSCALE
from .presets import EMBEDDED, Spec, fitting_overlap
from .sampling import get_sampler
from .tile_batch import AUTO, check_tile_batch
from .tiling import TileGrid


@dataclass(frozen=True, kw_only=True)
class RestoreConfig:
    """One restoration; defaults are the embedded model's, `from_spec` gives another family's.

    Attributes:
        scale: enlargement in [1, 8].
        steps: model calls per tile.
        seed: of the noise, in [0, 2^64).
        sampler: name in `sampling.SAMPLERS`.
        scheduler: name in `flow.SCHEDULERS`.
        shift: of the schedule.
        sigma_start: in (0, 1]; 1 starts from pure noise, lower values from the LR latents.
        cfg_scale: classifier-free guidance at sigma 1; 1 is off.
        cfg_scale_end: the same at sigma 0, linear between; None for cfg_scale throughout.
        cfg_start_percent, cfg_end_percent: where in the sampling guidance is active, 0 is its start and 1 its end;
            steps outside save the negative prompt's model call.
        fidelity: restoration guidance in [0, 1], see `guidance.restoration_guidance`.
        control_scale: strength of the control stream, at least 0.
        control_start, control_end: where in the sampling the control is active, 0 is its start and 1 its end.
        tile: side of a tile in output pixels, a multiple of 16.
        overlap: least overlap of tiles in output pixels.
        tile_batch: tiles per model call, the same picture up to rounding; 0: as many as make it faster (up to 16 of
            256 pixels or one of 1024 on a GPU, 8 of 256 on a CPU) and, measured, fit a GPU.
        blend_every_step: let tiles overlap in every step and not in the last ones only, see `tile_plan`.
        encoder_noise: for models that start from the LR latents: share of the autoencoder's own spread that is drawn
            around its mean, in [0, 1].
        color_fix: name in `color.COLOR_FIXES`.
        prompt, negative_prompt: text, for models that know text.
    """

    scale: float = 4.0
    steps: int = EMBEDDED.steps
    seed: int = 0
    sampler: str = EMBEDDED.sampler
    scheduler: str = EMBEDDED.scheduler
    shift: float = EMBEDDED.shift
    sigma_start: float = EMBEDDED.sigma_start
    cfg_scale: float = EMBEDDED.cfg_scale
    cfg_scale_end: float | None = None
    cfg_start_percent: float = 0.0
    cfg_end_percent: float = 1.0
    fidelity: float = 0.0
    control_scale: float = 1.0
    control_start: float = 0.0
    control_end: float = 1.0
    tile: int = EMBEDDED.tile
    overlap: int = EMBEDDED.overlap
    tile_batch: int = AUTO
    blend_every_step: bool = False
    encoder_noise: float = 1.0
    color_fix: ColorFix = EMBEDDED.color_fix  # type: ignore[assignment]
    prompt: str = ""
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        check_scale(self.scale)
        get_sampler(self.sampler)
        schedule(self.steps, self.shift, self.sigma_start, scheduler=self.scheduler)
        if self.tile % (2 * DOWNSCALE):
            raise ValueError(f"expected a tile that is a multiple of {2 * DOWNSCALE} pixels, got {self.tile}; use 256")
        if not 0 <= self.overlap <= self.tile - 2 * DOWNSCALE:
            got = f"{self.overlap} pixels for a tile of {self.tile}"
            raise ValueError(
                f"expected an overlap from 0 to {self.tile - 2 * DOWNSCALE}, got {got}; a quarter is usual"
            )
        self.latent_grid(1, 1)
        check_tile_batch(self.tile_batch)
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"expected a seed in [0, 2^64), got {self.seed}; use e.g. 0")
        if not 0 <= self.fidelity <= 1:
            raise ValueError(f"expected fidelity in [0, 1], got {self.fidelity}; 0 leaves the model free")
        if not 0 <= self.encoder_noise <= 1:
            raise ValueError(f"expected encoder_noise in [0, 1], got {self.encoder_noise}; 0 takes the encoder's mean")
        for first, last in (("control_start", "control_end"), ("cfg_start_percent", "cfg_end_percent")):
            start, end = getattr(self, first), getattr(self, last)
            if not 0 <= start < end <= 1:
                raise ValueError(f"expected 0 <= {first} < {last} <= 1, got {start} and {end}; use 0 and 1")
        for name in ("control_scale", "cfg_scale", "cfg_scale_end"):
            value = getattr(self, name)
            if value is not None and not (0 <= value < math.inf):
                raise ValueError(f"expected {name} of at least 0, got {value}; 1 is usual")
        check_text("a prompt", self.prompt)
        check_text("a negative prompt", self.negative_prompt)
        if self.color_fix not in COLOR_FIXES:
            raise ValueError(f"expected a colour fix out of {', '.join(COLOR_FIXES)}, got {self.color_fix!r}")

    @classmethod
    def from_spec(cls, spec: Spec, **changes: Any) -> "RestoreConfig":
        """Take a model family's sampling defaults; `changes` name other fields or override them.

        A smaller tile shrinks the family's overlap too, unless `changes` has an overlap.
        """
        shared = {field.name for field in fields(cls)} & {field.name for field in fields(spec)}
        settings = {name: getattr(spec, name) for name in shared} | changes
        if "overlap" not in changes:
            settings["overlap"] = fitting_overlap(settings["tile"], spec.tile, spec.overlap)
        return cls(**settings)

    def latent_grid(self, height: int, width: int) -> TileGrid:
        """Return the largest tiles in latents of the given size; see `tile_plan` for those that run."""
        tile, overlap = self.tile // DOWNSCALE, self.overlap // DOWNSCALE
        return TileGrid(height=height, width=width, tile=tile, overlap=overlap)
