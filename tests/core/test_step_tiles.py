"""Tiles of a run: overlapping in the last step only, fewer calls, and the same picture where there is one step."""

import dataclasses

import pytest
import torch

from eam_core.denoiser import TiledDenoiser
from eam_core.images import load_image, resize
from eam_core.pipeline import Restorer
from eam_core.presets import ASSETS
from eam_core.restore_config import RestoreConfig
from eam_core.seams import seam_ratio
from eam_core.tile_plan import overlapping_tiles
from eam_core.tiling import TileGrid

SMALL = RestoreConfig(tile=64, overlap=16, tile_batch=1, sigma_start=1.0)


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.embedded()


def calls_of(restorer, monkeypatch, config, side=48):
    """Return the boxes of each step's calls, one tile at a time."""
    boxes = []
    original = TiledDenoiser._lr_state

    def noted(self, lr_tiles, some):
        boxes.append((self.steps_done, some[0]))
        return original(self, lr_tiles, some)

    monkeypatch.setattr(TiledDenoiser, "_lr_state", noted)
    restorer.restore(torch.rand(1, 3, side, side), config)
    return [[box for step, box in boxes if step == number] for number in range(config.steps)]


def test_only_the_last_step_takes_the_overlapping_tiles(restorer, monkeypatch):
    config = dataclasses.replace(SMALL, steps=3, tile=128)
    steps = calls_of(restorer, monkeypatch, config, side=96)
    assert steps[2] == overlapping_tiles(config.latent_grid(48, 48)).boxes
    assert [len(step) for step in steps] == [9, 16, 16]
    # Evenly spread tiles that just meet: three of 16 latents, four of 12.
    assert [steps[0][0][3], steps[1][0][3]] == [16, 12]


def test_every_step_overlaps_where_that_is_wanted(restorer, monkeypatch):
    config = dataclasses.replace(SMALL, steps=3, blend_every_step=True)
    full = overlapping_tiles(config.latent_grid(24, 24)).boxes
    assert calls_of(restorer, monkeypatch, config) == [full] * 3


def test_one_step_is_the_same_either_way(restorer):
    image = torch.rand(1, 3, 40, 40)
    one = dataclasses.replace(SMALL, steps=1)
    every = dataclasses.replace(one, blend_every_step=True)
    assert torch.equal(restorer.restore(image, one), restorer.restore(image, every))


def test_progress_counts_the_tiles_that_run(restorer):
    seen = []
    config = dataclasses.replace(SMALL, steps=3)
    restorer.restore(torch.rand(1, 3, 48, 48), config, lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}


def test_no_borders_show_after_several_steps(restorer):
    photo = resize(load_image(ASSETS / "sample_lr.png").rgb, (80, 80)).clamp(0, 1)
    config = RestoreConfig(steps=4, sigma_start=1.0, tile=128, overlap=32, tile_batch=1)
    whole = restorer.restore(photo, dataclasses.replace(config, tile=320, overlap=32))
    tiles = restorer.restore(photo, config)
    every = restorer.restore(photo, dataclasses.replace(config, blend_every_step=True))
    grid = TileGrid(height=320, width=320, tile=128, overlap=0, align=16)
    ratio, ratio_whole = seam_ratio(tiles, grid, 16), seam_ratio(whole, grid, 16)
    assert ratio is not None and ratio_whole is not None
    assert ratio < ratio_whole + 0.1
    assert (tiles - every).abs().mean() < 0.02
