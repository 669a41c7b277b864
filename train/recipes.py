"""The recipes of train_psi_dit: functions that return a complete, validated config.

What the papers leave open is taken from their closest relatives and marked so.
"""

from dataclasses import replace

from eam_core.mim import MaskConfig
from eam_core.presets import EMBEDDED
from train.config import LoopConfig
from train.control_task import ControlConfig
from train.data import DataConfig
from train.objective import ObjectiveConfig
from train.pairs import TINY_PAIRS, PairConfig
from train.parts import PartsConfig

_SD3 = PartsConfig(
    base="models/sd3_medium.safetensors",
    autoencoder="models/sd3_medium_diffusers/vae",
    text_cache="data/text_cache",
    gradient_checkpointing="on",
)
_SD3_DATA = DataConfig(
    data=("DIV2K=data/DIV2K", "Flickr2K=data/Flickr2K", "LSDIR=data/LSDIR", "OST=data/OST", "FFHQ=data/FFHQ"),
    crop_sizes=(1024,),
    captions="sa",
    num_workers=8,
)
_STOCK = PairConfig(presets=("stock",), preset_weights=(1.0,))
# Batch, learning rate, weight decay and clipping: not in the paper; those of DiT4SR.
_SD3_LOOP = LoopConfig(
    steps=30_000,
    batch_size=64,
    lr=5e-5,
    lr_schedule="constant",
    warmup=500,
    beta2=0.999,
    ema=0.9999,
    precision="bf16",
    save_every=1000,
    validate_every=2500,
)


def eam() -> ControlConfig:
    """The paper: SD3-medium, 1024 px, 30,000 iterations, masked training (PMS), then all tokens (SFT).

    How the iterations divide is not stated; here the last sixth is SFT.
    """
    return ControlConfig(
        recipe="eam",
        run_dir="runs/eam",
        parts=_SD3,
        data=_SD3_DATA,
        pairs=_STOCK,
        objective=ObjectiveConfig(masked_steps=25_000, mask=MaskConfig(strategy="pms")),
        loop=_SD3_LOOP,
        val_size=1024,
        val_count=4,
        val_steps=28,
        val_sigma_start=1.0,
    )


def consissr() -> ControlConfig:
    """ConsisSR's two ideas on the same base: TALA with exponent 10 and the image prompt (HPA); 512 px as there."""
    return replace(
        eam(),
        recipe="consissr",
        run_dir="runs/consissr",
        parts=replace(_SD3, image_encoder="runs/vision_tower/tower"),
        data=replace(_SD3_DATA, crop_sizes=(512,)),
        objective=ObjectiveConfig(tala="sigma", tala_exponent=10.0),
        loop=replace(_SD3_LOOP, steps=200_000, lr=1e-4),
        val_size=512,
        val_count=8,
        val_sigma_start=0.94,
    )


def controlnet() -> ControlConfig:
    """The ablation's other arm (Table 2): DiT-ControlNet, 80,000 iterations, no masks."""
    return replace(
        eam(),
        recipe="controlnet",
        run_dir="runs/controlnet",
        parts=replace(_SD3, family="controlnet", num_blocks=12),
        objective=ObjectiveConfig(),
        loop=replace(_SD3_LOOP, steps=80_000),
    )


def tiny() -> ControlConfig:
    """The embedded default's control: small base, no text, PMS, TALA, loss on the linearly decoded picture.

    In so short a run masks cost quality (docs/results/table4.md), so only the first steps have them.
    """
    return ControlConfig(
        recipe="tiny",
        run_dir="runs/control",
        parts=PartsConfig(local_heads=1),
        data=DataConfig(data=("data/photos",), crop_sizes=(128, 192)),
        pairs=TINY_PAIRS,
        objective=ObjectiveConfig(
            loss="picture",
            times="uniform",
            shift=1.0,
            tala="sigma",
            tala_exponent=1.0,
            null_text=0.0,
            masked_steps=300,
            mask=MaskConfig(strategy="pms"),
        ),
        loop=LoopConfig(steps=1700, batch_size=16, lr=1e-3, ema=0.998, save_every=200, validate_every=200),
        positions="random",
    )


def debug() -> ControlConfig:
    """Seconds on a CPU, on the embedded base: proves the path, learns nothing."""
    return ControlConfig(
        recipe="debug",
        run_dir="runs/debug",
        parts=PartsConfig(base=str(EMBEDDED.base), autoencoder=str(EMBEDDED.autoencoder)),
        data=DataConfig(data=("data/photos",), crop_sizes=(64,), held_out=3, num_workers=0),
        objective=ObjectiveConfig(
            shift=1.0, tala="sigma", null_text=0.5, masked_steps=2, mask=MaskConfig(strategy="pms")
        ),
        loop=LoopConfig(steps=4, batch_size=2, lr=1e-3, warmup=1, save_every=2, log_every=1, validate_every=2, ema=0.5),
        positions="random",
        val_count=2,
        val_size=64,
        val_sigma_start=0.7,
    )


RECIPES = {recipe.__name__: recipe for recipe in (eam, consissr, controlnet, tiny, debug)}
