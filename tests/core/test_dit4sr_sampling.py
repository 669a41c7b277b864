"""DiT4SR's sampling: schedule, colours, tiles and whole runs as in its authors' code."""

import json
from itertools import pairwise

import pytest
import torch
from dit4sr_golden import SAMPLING, TOLERANCE, Golden, needs_golden

from eam_core.color import apply_color_fix
from eam_core.flow import schedule
from eam_core.guidance import cfg


@needs_golden
def test_the_normal_scheduler_is_theirs():
    golden = Golden.load("dit4sr_v1_sampling.safetensors")
    for steps in (20, 28, 40):
        sigmas = schedule(steps, 3.0, scheduler="normal")
        assert (sigmas - golden[f"schedule.sigmas_{steps}"]).abs().max() < 1e-6
        assert (1000 * sigmas[:-1] - golden[f"schedule.timesteps_{steps}"]).abs().max() < 1e-3


@needs_golden
def test_adain_is_theirs():
    golden = Golden.load("dit4sr_v1_sampling.safetensors")
    fixed = apply_color_fix(golden["color.result"], golden["color.lr_upscaled"], "adain")
    assert (fixed - golden["color.adain"].clamp(0, 1)).abs().max() < TOLERANCE


def window(size: int) -> torch.Tensor:
    """Their tile window, float64, rows are y: peaked, and half a pixel off the middle in y."""
    place = torch.arange(size, dtype=torch.float64)
    x, y = (torch.exp(-((place - middle) ** 2) / (2 * 0.01 * size**2)) for middle in ((size - 1) / 2, size / 2))
    return y[:, None] * x


def starts(side: int, tile: int, overlap: int) -> list[int]:
    count = 1
    while count * tile - (count - 1) * overlap < side:
        count += 1
    return [*(i * (tile - overlap) for i in range(count - 1)), side - tile]


@needs_golden
@pytest.mark.parametrize("size", [16, 64])
def test_window_of_these_tests_is_theirs(size):
    expected = Golden.load("dit4sr_v1_sampling.safetensors")[f"tile_weights_{size}"]
    ours = window(size)
    assert ((ours / ours.max() - expected / expected.max()).abs() / (expected / expected.max())).max() < 1e-12


@needs_golden
@pytest.mark.parametrize("run", ["untiled", "tiled"])
@pytest.mark.parametrize("name", SAMPLING)
@torch.no_grad()
def test_whole_sampling_runs_are_theirs(name, run):
    golden = Golden.load(name)
    setup = json.loads(golden.metadata[run])
    model = Golden.load(setup["weights"]).model()
    given = {key.removeprefix(f"{run}."): value for key, value in golden.tensors.items() if key.startswith(f"{run}.")}
    tile, (height, width) = setup["tile"], given["noise"].shape[-2:]
    boxes = [(y, x) for y in starts(height, tile, setup["overlap"]) for x in starts(width, tile, setup["overlap"])]
    if run == "tiled":
        assert boxes == [(y, x) for y in setup["y_offsets"] for x in setup["x_offsets"]]
    weight = window(tile).float()
    x, sigmas = given["noise"], schedule(setup["steps"], setup["shift"], scheduler="normal")
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocities = []
        for side in ("positive", "negative"):
            total, norm = torch.zeros_like(x), torch.zeros_like(x)
            for top, left in boxes:
                place = (..., slice(top, top + tile), slice(left, left + tile))
                text = (given[f"text_{side}"], given[f"pooled_{side}"])
                velocity = model(x[place], 1000 * sigma[None], *text, given["lr_latent"][place])
                total[place] += weight * velocity
                norm[place] += weight
            velocities.append(total / norm)
        x = x + (sigma_next - sigma) * cfg(*velocities, setup["cfg_scale"])
        assert (x - given["latents_after_step"][step]).abs().max() < 1e-4, step
    assert (x - given["output"][0]).abs().max() < 1e-4
