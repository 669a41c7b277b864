"""Pictures of training data: every colour mode becomes 8-bit RGB, upright, and crops prefer detail."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parent))

from data_stand_ins import encoded, picture

from train.data.crops import training_crop
from train.data.pictures import decode


def modes() -> Iterator[tuple[str, bytes]]:
    grey = Image.fromarray(np.full((32, 48), 100, dtype=np.uint8))
    yield "grey", encoded(grey, "PNG")
    yield "16 bits", encoded(Image.fromarray(np.full((32, 48), 100 * 257, dtype=np.uint16)), "PNG")
    yield "palette", encoded(grey.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), "PNG")
    transparent = grey.convert("RGBA")
    transparent.putalpha(0)
    yield "alpha", encoded(transparent, "PNG")


@pytest.mark.parametrize(("name", "data"), list(modes()))
def test_every_colour_mode_becomes_8_bit_rgb(name, data):
    assert (decode(data, name) == np.full((32, 48, 3), 100)).all()


def test_exif_turns_the_picture_upright():
    image = picture(1, 48, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    upright = np.asarray(image).transpose(1, 0, 2)[:, ::-1]
    assert (decode(encoded(image, "PNG", exif=exif), "turned") == upright).all()


def test_crops_prefer_detail_and_stay_upright_for_captions():
    pixels = np.zeros((64, 640, 3), dtype=np.uint8)
    pixels[:, :160] = np.random.default_rng(0).integers(0, 256, (64, 160, 3))
    few, many = (
        sum(float(training_crop(pixels, 64, i, tries=n, turns=1).float().mean()) for i in range(60)) for n in (1, 4)
    )
    assert many > 1.5 * few
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    assert all(training_crop(ramp, 32, i, tries=1, turns=1)[0, 0, 0] < 64 // 2 + 2 for i in range(20))
    noise = pixels[:, :64]
    kinds = [{training_crop(noise, 64, i, tries=1, turns=n).numpy().tobytes() for i in range(60)} for n in (1, 4)]
    assert list(map(len, kinds)) == [2, 8]  # flipped or not, times the quarter turns


def test_a_third_of_the_crops_is_of_twice_the_size():
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[::2] = 255  # lines vanish at half size
    halved = sum(int(training_crop(pixels, 32, i, tries=1, turns=1).float().std() < 60) for i in range(300))
    assert 70 < halved < 130
