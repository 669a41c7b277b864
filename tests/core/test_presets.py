"""Tiles as users set them."""

import pytest

from eam_core.presets import DIT4SR, EMBEDDED, chosen_tiles


@pytest.mark.parametrize(
    ("tile", "overlap", "expected"),
    [
        (0, 0, (512, 192)),
        (1024, 0, (1024, 192)),
        (256, 0, (256, 96)),
        (128, 32, (128, 32)),
        (0, 64, (512, 64)),
        (64, 48, (64, 48)),
    ],
)
def test_zero_takes_what_the_model_likes(tile, overlap, expected):
    assert chosen_tiles(tile, overlap, (DIT4SR.tile, DIT4SR.overlap)) == expected


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (16, 0, r"tile: expected 0 or at least 64 pixels, got 16"),
        (64, 64, r"overlap: expected at most 48 pixels for a tile of 64, got 64"),
        (0, 256, r"overlap: expected at most 240 pixels for a tile of 256, got 256"),
    ],
)
def test_sizes_that_leave_nothing_are_refused_in_pixels(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        chosen_tiles(tile, overlap, (EMBEDDED.tile, EMBEDDED.overlap))
