"""Tiles no larger than needed: as many as before, and the same picture from the embedded autoencoder."""

import math

import pytest
import torch

from eam_core.images import load_image, resize
from eam_core.pipeline import AUTOENCODER_TILE, Restorer, autoencoder_tiles
from eam_core.presets import ASSETS
from eam_core.tile_plan import fitting_tile
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
