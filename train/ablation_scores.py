"""How an ablation scores: the same held-out pictures under every degradation, sampled and measured in the same ways."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from eam_core.flow import schedule
from eam_core.model.autoencoder import Autoencoder, unscale_latents
from train.ablation_plan import Run
from train.control_task import ControlTask
from train.data import Batch, DataConfig, DataError, TrainingData
from train.metrics import MetricError, perceptual_metric
from train.objective import sample_noise
from train.pairs import PairConfig, Pairs, make_pairs
from train.restoring import sample

# Number of Euler steps and where they start: as the embedded default is used, and from pure noise.
SAMPLINGS = ((1, 0.7), (8, 1.0))

Distance = Callable[[Tensor, Tensor], Tensor]
"""(images [B, 3, H, W], references, both in [0, 1]) -> distance [B]."""


def way_name(steps: int, start: float) -> str:
    """Name one of SAMPLINGS."""
    return f"{steps} step{'s' * (steps > 1)} from {start:g}"


@torch.no_grad()
def score(run: Run, count: int) -> dict[str, list[float]]:
    """Restore held-out pictures in every way of SAMPLINGS and return each picture's scores by "metric, sampling"."""
    config = run.config
    if run.arm.test_captions:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, captions=run.arm.test_captions))
    parts = dataclasses.replace(config.parts, start=str(run.folder / "control.safetensors"))
    task = ControlTask(dataclasses.replace(config, parts=parts))
    module = task.module.eval()
    batch = held_out(config.data, count, config.val_size)
    hr = batch.hr.float() / 255
    text = module.texts(batch.captions, torch.zeros(len(hr), dtype=torch.bool))
    distance = load_distance()
    scores: dict[str, list[float]] = {}
    for preset in config.pairs.presets:
        pairs = make_pairs(hr, batch.seeds, only(config.pairs, preset), module.autoencoder)
        tokens = module.image_tokens(pairs)
        ways = sampled(
            module.model, module.autoencoder, pairs, batch.seeds, text, shift=config.objective.shift, tokens=tokens
        )
        for way, restored in ways:
            for metric, values in measured(restored, hr, distance).items():
                scores.setdefault(f"{metric}, {way}", []).extend(values)
    return scores


def held_out(data: DataConfig, count: int, size: int) -> Batch:
    """Return the pictures that everything in an ablation is scored on.

    Raises:
        DataError: there are none of that size.
    """
    batch = TrainingData(data, seed=0, batch_size=1).held_out_batch(count, size)
    if not len(batch.hr):
        raise DataError(
            f"expected held-out pictures of at least {size} x {size} pixels, one in {data.held_out} of those in "
            f"{', '.join(data.data)}, found none; give more or larger pictures, or a smaller --crop-size."
        )
    return batch


def only(pairs: PairConfig, preset: str) -> PairConfig:
    """Return pairs of one degradation."""
    return dataclasses.replace(pairs, presets=(preset,), preset_weights=(1.0,))


def sampled(
    model: Any,
    autoencoder: Autoencoder,
    pairs: Pairs,
    seeds: Tensor,
    text: tuple[Tensor, Tensor],
    *,
    shift: float,
    tokens: Tensor | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Restore pictures in every way of SAMPLINGS.

    Args:
        model: a `PsiDiT`, or what is called like it.
        autoencoder: decodes what it makes.
        pairs: the pictures.
        seeds: of the pictures [B], which the noise is drawn from.
        text: context and pooled vectors.
        shift: of the schedule.
        tokens: of the image prompt.

    Yields:
        Name of the way, and pictures [B, 3, H, W] in [0, 1].
    """
    noise = sample_noise(pairs.hr_latents, seeds)
    for steps, start in SAMPLINGS:
        latents = sample(model, pairs.lr_latents, text, noise, schedule(steps, shift, start), image_tokens=tokens)
        decoded = autoencoder.decode(unscale_latents(latents)).float()
        yield way_name(steps, start), (decoded / 2 + 0.5).clamp(0, 1)


def measured(restored: Tensor, hr: Tensor, distance: Distance | None) -> dict[str, list[float]]:
    """Return every metric of pictures [B, 3, H, W] against their originals, both in [0, 1]."""
    errors = (restored - hr).square().mean((1, 2, 3))
    scores = {"PSNR": (-10 * errors.log10()).tolist()}
    return scores | ({"ST-LPIPS": distance(restored, hr).tolist()} if distance else {})


def load_distance() -> Distance | None:
    """Load ST-LPIPS; None, with one sentence, where its packages are missing."""
    try:
        return perceptual_metric("stlpips")
    except MetricError as error:
        print(f"ST-LPIPS is left out: {error}", file=sys.stderr)
        return None
