"""Named presets: where the embedded default's weights lie, and how each model family likes to be sampled.

Plain numbers and paths, so that the command line's help and ComfyUI's start-up need not import torch.
"""

from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
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
    base: Path | None = None
    control: Path | None = None
    autoencoder: Path | None = None


EMBEDDED = Spec(
    name="EAM tiny (embedded)",
    shift=1.0,
    steps=1,
    sigma_start=0.5,
    sampler="euler",
    cfg_scale=1.0,
    tile=256,
    overlap=64,
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
