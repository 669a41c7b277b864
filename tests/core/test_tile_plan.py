"""Tiles no larger than needed: as many as before, and the same picture from the embedded autoencoder."""

import math

import pytest
import torch

from eam_core.images import load_image, resize
from eam_core.pipeline import AUTOENCODER_TILE, Restorer, autoencoder_tiles
from eam_core.presets import ASSETS
from eam_core.tile_plan import fitting_tile, grid_of_call
from eam_core.tiling import TileGrid, tiled_map


@pytest.mark.parametrize(("height", "width"), [(2000, 2000), (4000, 1200), (1032, 4008), (1024, 1024), (64, 5000)])
@pytest.mark.parametrize(("tile", "overlap", "align"), [(1024, 48, 8), (1024, 100, 8), (128, 6, 1), (256, 64, 16)])
def test_the_smallest_tile_of_the_same_number(height, width, tile, overlap, align):
    def tiles(side):
        grid = TileGrid(height=height, width=width, tile=side, overlap=overlap, align=align)
        return len(grid.tops), len(grid.lefts)

    fitting = fitting_tile(height, width, tile=tile, overlap=overlap, align=align)
    assert fitting <= tile and fitting % align == 0
    assert tiles(fitting) == tiles(tile)
    if tiles(tile) != (1, 1):
        assert tiles(fitting - align) != tiles(tile)


def test_little_is_computed_twice_by_the_autoencoder():
    autoencoder = Restorer.embedded().autoencoder
    for side in (2000, 4000, 8000):
        tile, overlap = autoencoder_tiles(autoencoder, side, side, align=8)
        num_tiles = len(TileGrid(height=side, width=side, tile=tile, overlap=overlap, align=8).boxes)
        assert tile <= AUTOENCODER_TILE
        assert num_tiles * tile**2 <= 1.12 * side**2


@torch.no_grad()
def test_tiles_of_the_embedded_autoencoder_give_the_whole_picture_within_a_grey_level():
    autoencoder = Restorer.embedded().autoencoder
    picture = resize(load_image(ASSETS / "sample_lr.png").rgb, (512, 512)).clamp(0, 1) * 2 - 1
    overlap = autoencoder.tile_overlap
    latents = autoencoder.encode_degraded(picture)
    whole = autoencoder.decode(latents)
    tile = (512 + overlap) // 2 // 8
    parts = tiled_map(autoencoder.decode, latents, tile=tile, overlap=overlap // 8, scale=8)
    error = 127.5 * (parts - whole).abs()
    assert error.max() < 1
    assert math.sqrt(error.square().mean()) < 0.05
    # Tiles that share nothing would show.
    apart = tiled_map(autoencoder.decode, latents, tile=32, overlap=0, scale=8)
    assert 127.5 * (apart - whole).abs().max() > 5


GRIDS = [
    TileGrid(height=128, width=128, tile=32, overlap=8),
    TileGrid(height=64, width=64, tile=32, overlap=8),
    TileGrid(height=24, width=200, tile=32, overlap=8),
    TileGrid(height=137, width=90, tile=32, overlap=8),
    TileGrid(height=140, width=139, tile=128, overlap=32),
    TileGrid(height=40, width=40, tile=8, overlap=4, align=1),
]


@pytest.mark.parametrize("grid", GRIDS)
def test_steps_before_the_last_take_fewer_tiles_and_the_last_its_own(grid):
    steps = [grid_of_call(grid, step, last=step == 4) for step in range(5)]
    assert steps[-1] is grid
    for step in steps[:-1]:
        covered = torch.zeros(grid.height, grid.width)
        for top, left, height, width in step.boxes:
            assert height <= grid.tile and width <= grid.tile
            covered[top : top + height, left : left + width] = 1
        assert covered.all()
        assert 0.75 * grid.tile <= step.tile <= grid.tile and step.tile % grid.align == 0
        assert (
            len(step.boxes) * step.tile_height * step.tile_width <= len(grid.boxes) * grid.tile_height * grid.tile_width
        )


def test_borders_move_from_step_to_step_where_tiles_are_many():
    grid = TileGrid(height=128, width=128, tile=32, overlap=8)
    even, odd = grid_of_call(grid, 0, last=False), grid_of_call(grid, 1, last=False)
    assert (len(grid.tops), len(even.tops), len(odd.tops)) == (5, 4, 5)
    assert not {*even.tops[1:]} & {*odd.tops[1:]}
    assert grid_of_call(grid, 2, last=False) == even


def test_one_tile_stays_one():
    grid = TileGrid(height=32, width=20, tile=32, overlap=8)
    assert grid_of_call(grid, 0, last=False) is grid
