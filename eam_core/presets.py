"""Named presets: where the embedded default's weights lie, and how each model family likes to be sampled.

Plain numbers and paths, so that the command line's help and ComfyUI's start-up need not import torch.
"""

from dataclasses import dataclass
from pathlib import Path

MIN_TILE, ALIGN = 64, 16  # pixels
ASSETS = Path(__file__).parent / "assets"
SD3_LATENT_SHIFT = 0.0609  # model.autoencoder.SD3_SHIFT, which torch comes with
NUM_NULL_TOKENS = "null_tokens"  # in the training notes of a base: it was trained without text


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One model family.

    Attributes:
        name: for people.
        shift: of the schedule, see `flow.shift_sigma`.
        steps: model calls per tile.
        sigma_start: where sampling starts, see `flow.schedule`.
        sampler: name in `sampling.SAMPLERS`.
        cfg_scale: classifier-free guidance; 1 is off.
        tile: side of a tile in output pixels.
        overlap: of neighbouring tiles in output pixels.
        color_fix: name in `color.COLOR_FIXES`.
        num_null_tokens: zero text tokens that stand for no text at all.
        start: "noise", or "lr" for a model that starts from the LR latents themselves, at sigma 1, and takes `steps` as
            they are.
        scheduler: name in `flow.SCHEDULERS`.
        canvas: "resized", or "padded": enlarged by a sharper kernel to the exact size, then padded (`eam_core.start`).
        latent_shift: of the autoencoder's raw latents; the scale is SD3's for all.
        fixed_prompt: text that a model was trained with for every picture; "" where prompts are the user's.
        base, control, autoencoder: weight files that ship with the package; None where users bring their own.
    """

    name: str
    shift: float
    steps: int
    sigma_start: float
    sampler: str
    cfg_scale: float
    tile: int
    overlap: int
    color_fix: str
    num_null_tokens: int
    start: str = "noise"
    scheduler: str = "sgm_uniform"
    canvas: str = "resized"
    latent_shift: float = SD3_LATENT_SHIFT
    fixed_prompt: str = ""
    base: Path | None = None
    control: Path | None = None
    autoencoder: Path | None = None


def chosen_tiles(tile: int, overlap: int, usual: tuple[int, int]) -> tuple[int, int]:
    """Return tile and overlap in pixels as a user set them, 0 for what is usual.

    Raises:
        ValueError: a tile below 64 pixels, or an overlap that leaves nothing between two tiles.
    """
    if tile and tile < MIN_TILE:
        raise ValueError(f"tile: expected 0 or at least {MIN_TILE} pixels, got {tile}; 0 takes what the model likes")
    tile = tile or usual[0]
    if overlap > tile - ALIGN:
        raise ValueError(
            f"overlap: expected at most {tile - ALIGN} pixels for a tile of {tile}, got {overlap}; 0 takes what fits"
        )
    return tile, overlap or fitting_overlap(tile, *usual)


def fitting_overlap(tile: int, usual_tile: int, usual_overlap: int) -> int:
    """Return the overlap that suits a tile: the usual one, shrunk with a smaller tile, though not below a quarter."""
    return min(usual_overlap, max(tile // 4, usual_overlap * tile // usual_tile))


EMBEDDED = Spec(
    name="EAM tiny (embedded)",
    shift=1.0,
    steps=1,
    sigma_start=0.5,
    sampler="euler",
    cfg_scale=1.0,
    tile=256,
    overlap=32,
    color_fix="wavelet",
    num_null_tokens=4,
    base=ASSETS / "tiny_base.safetensors",
    control=ASSETS / "tiny_control.safetensors",
    autoencoder=ASSETS / "tiny_autoencoder.safetensors",
)

SD3 = Spec(
    name="Stable Diffusion 3",
    shift=3.0,
    steps=28,
    sigma_start=1.0,
    sampler="dpmpp_2m",
    cfg_scale=5.0,
    tile=1024,
    overlap=256,
    color_fix="wavelet",
    # 77 of the CLIP encoders and 256 of T5; all zero is what SD3 saw when training dropped every encoder.
    num_null_tokens=333,
)

TSDSR = Spec(
    name="TSD-SR",
    shift=3.0,  # without effect: its one step is at sigma 1
    steps=1,
    sigma_start=1.0,
    sampler="euler",
    cfg_scale=1.0,
    tile=512,
    overlap=64,
    color_fix="wavelet",
    num_null_tokens=333,
    start="lr",
    canvas="padded",
    latent_shift=0.0,
    # As its authors wrote it.
    fixed_prompt="Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - "
    "realistic maximum detail, 32k, Color Grading, ultra HD, extrememeticulous detailing, skin pore detailing, hyper "
    "sharpness, perfect without deformations.",
)

# What its authors' test scripts use.
DIT4SR = Spec(
    name="DiT4SR",
    shift=3.0,
    steps=40,
    sigma_start=1.0,
    sampler="euler",
    scheduler="normal",
    cfg_scale=8.0,
    tile=512,
    overlap=192,
    color_fix="adain",
    num_null_tokens=333,
)

SPECS = {"sd3": SD3, "dit4sr": DIT4SR, "tsdsr": TSDSR}
"""By the name under which a control family asks for its settings."""
