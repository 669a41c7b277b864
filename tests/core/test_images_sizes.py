"""Sizes of pictures: the bounds of what is taken, and resizing as Pillow does it."""

import numpy as np
import pytest
import torch
from picture_files import as_tensor, colour_image, one_sentence
from PIL import Image

from eam_core.errors import ImageError
from eam_core.images import (
    MAX_EDGE,
    MIN_EDGE,
    check_scale,
    check_size,
    resize,
)


def test_sizes_at_the_bounds_pass():
    check_size(MIN_EDGE, MAX_EDGE)
    check_size(8192, 8192, scale=4)
    check_size(MAX_EDGE, MIN_EDGE, scale=4)


@pytest.mark.parametrize(("height", "width", "scale"), [(8192, 8192, 4.1), (MIN_EDGE, MAX_EDGE, 8)])
def test_too_large_a_result_is_refused(height, width, scale):
    with pytest.raises(ImageError, match=f"got {round(width * scale)} x {round(height * scale)} at scale {scale}; low"):
        check_size(height, width, scale)


def test_scale_is_held_within_its_bounds():
    for scale in (1, 2.5, 4, 8):
        check_scale(scale)
    for scale in (0, 0.99, 8.01, 100, -4, float("nan"), float("inf")):
        with pytest.raises(ImageError, match=rf"expected a number from 1 to 8, got {scale:g};") as error:
            check_scale(scale)
        one_sentence(error)


@pytest.mark.parametrize("size", [(96, 120), (13, 11), (24, 90)])
@pytest.mark.parametrize(("mode", "filter_"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
def test_resize_agrees_with_pillow(size, mode, filter_):
    image = torch.rand(1, 1, 24, 30, generator=torch.Generator().manual_seed(0))
    expected = np.array(Image.fromarray(image[0, 0].numpy()).resize(size[::-1], filter_)).clip(0, 1)
    torch.testing.assert_close(resize(image, size, mode)[0, 0], torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_resize_agrees_with_pillow_on_an_8_bit_photo():
    image = colour_image(64, 48)
    for size in ((192, 256), (12, 16)):
        expected = as_tensor(image.resize(size[::-1], Image.BICUBIC))
        torch.testing.assert_close(resize(as_tensor(image), size), expected, atol=1.01 / 255, rtol=0)


def test_resize_stays_inside_the_range():
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1
    enlarged = resize(edge, (64, 64))
    assert enlarged.min() == 0
    assert enlarged.max() == 1
