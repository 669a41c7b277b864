"""The drawn parameters against the table of Real-ESRGAN's stock x4 options and of its light variant."""

import math
from collections import Counter
from functools import lru_cache

import pytest

from eam_core.degradation import PRESETS
from eam_core.degradation_draw import BlurDraw, SincDraw, draw_degradation

COUNT = 4000
# Per preset and order: what differs between them.
TABLE = {
    ("stock", 0): {
        "blur": 1.0,
        "sigma": (0.2, 3.0),
        "updown": (0.2, 0.7, 0.1),
        "resize": (0.15, 1.5),
        "gaussian": (1, 30),
        "poisson": (0.05, 3.0),
        "jpeg": (30, 95),
    },
    ("stock", 1): {
        "blur": 0.8,
        "sigma": (0.2, 1.5),
        "updown": (0.3, 0.4, 0.3),
        "resize": (0.3, 1.2),
        "gaussian": (1, 25),
        "poisson": (0.05, 2.5),
        "jpeg": (30, 95),
    },
}
TABLE["light", 0] = TABLE["stock", 0] | {
    "resize": (0.3, 1.5),
    "gaussian": (1, 15),
    "poisson": (0.05, 2.0),
    "jpeg": (60, 95),
}
TABLE["light", 1] = TABLE["stock", 1] | {
    "blur": 0.5,
    "resize": (0.6, 1.2),
    "gaussian": (1, 12),
    "poisson": (0.05, 1.0),
    "jpeg": (60, 100),
}
KINDS = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}
SIZES = range(7, 22, 2)


@lru_cache
def draws(preset):
    return [draw_degradation(PRESETS[preset], seed) for seed in range(COUNT)]


def orders(preset, number):
    return [draw.orders[number] for draw in draws(preset)]


def check_share(name, hits, probability):
    """Four standard deviations of a binomial; certain outcomes must be certain."""
    hits = list(hits)
    margin = 4 * math.sqrt(probability * (1 - probability) / len(hits))
    assert abs(sum(hits) / len(hits) - probability) <= margin, (name, sum(hits) / len(hits), probability)


def check_uniform(name, values, low, high):
    """Check range, mean and spread of a uniform variable, each to four standard deviations."""
    values, width = sorted(values), high - low
    assert len(values) > 30, name
    assert low <= values[0] and values[-1] <= high, (name, values[0], values[-1])
    largest_gap = 12 * width / len(values)  # odds of e^-12 that no draw comes this close
    assert values[0] - low < largest_gap and high - values[-1] < largest_gap, (name, values[0], values[-1])
    error = abs(sum(values) / len(values) - (low + high) / 2)
    assert error <= 4 * width / math.sqrt(12 * len(values)), (name, error)
    check_share(f"{name}, lower quarter", (value < low + width / 4 for value in values), 0.25)


@pytest.mark.parametrize("preset, number", TABLE)
def test_blur(preset, number):
    expected = TABLE[preset, number]
    blurs = [order.blur for order in orders(preset, number)]
    check_share("blur", (blur is not None for blur in blurs), expected["blur"])
    blurs = [blur for blur in blurs if blur is not None]
    for size in SIZES:
        check_share(f"size {size}", (blur.size == size for blur in blurs), 1 / len(SIZES))
    check_share("sinc", (isinstance(blur, SincDraw) for blur in blurs), 0.1)
    gaussians = [blur for blur in blurs if isinstance(blur, BlurDraw)]
    for kind, probability in KINDS.items():
        check_share(kind, (blur.kind == kind for blur in gaussians), probability)
    check_uniform("sigma_x", [blur.sigma_x for blur in gaussians], *expected["sigma"])
    check_uniform("sigma_y", [blur.sigma_y for blur in gaussians], *expected["sigma"])
    check_uniform("angle", [blur.angle for blur in gaussians], -math.pi, math.pi)


@pytest.mark.parametrize("preset, number", TABLE)
def test_sinc_cutoff_depends_on_the_kernel_size(preset, number):
    sincs = [order.blur for order in orders(preset, number) if isinstance(order.blur, SincDraw)]
    check_uniform("small", [sinc.cutoff for sinc in sincs if sinc.size < 13], math.pi / 3, math.pi)
    check_uniform("large", [sinc.cutoff for sinc in sincs if sinc.size >= 13], math.pi / 5, math.pi)


@pytest.mark.parametrize("preset, number", TABLE)
def test_half_of_the_shape_exponents_lie_on_either_side_of_one(preset, number):
    blurs = [order.blur for order in orders(preset, number) if isinstance(order.blur, BlurDraw)]
    generalized = [blur.beta for blur in blurs if blur.kind.startswith("generalized")]
    check_share("generalized, below 1", (beta < 1 for beta in generalized), 0.5)
    check_uniform("generalized, low", [beta for beta in generalized if beta < 1], 0.5, 1)
    check_uniform("generalized, high", [beta for beta in generalized if beta >= 1], 1, 4)
    plateau = [blur.beta for blur in blurs if blur.kind.startswith("plateau")]
    check_share("plateau, 1", (beta == 1 for beta in plateau), 0.5)
    check_uniform("plateau, high", [beta for beta in plateau if beta > 1], 1, 2)


@pytest.mark.parametrize("preset, number", TABLE)
def test_resize(preset, number):
    expected, drawn = TABLE[preset, number], orders(preset, number)
    factors = [order.resize_factor for order in drawn]
    directions = ([f > 1 for f in factors], [f < 1 for f in factors], [f == 1 for f in factors])
    for name, hits, probability in zip(("up", "down", "keep"), directions, expected["updown"]):
        check_share(name, hits, probability)
    low, high = expected["resize"]
    check_uniform("up", [factor for factor in factors if factor > 1], 1, high)
    check_uniform("down", [factor for factor in factors if factor < 1], low, 1)
    for mode in ("area", "bilinear", "bicubic"):
        check_share(mode, (order.resize_mode == mode for order in drawn), 1 / 3)


@pytest.mark.parametrize("preset, number", TABLE)
def test_noise_and_jpeg(preset, number):
    expected, drawn = TABLE[preset, number], orders(preset, number)
    for noise in ("gaussian", "poisson"):
        check_share(noise, (order.noise == noise for order in drawn), 0.5)
        strengths = [order.noise_strength for order in drawn if order.noise == noise]
        check_uniform(noise, strengths, *expected[noise])
        check_share("grey", (order.noise_channels == 1 for order in drawn if order.noise == noise), 0.4)
    assert Counter(order.noise_channels for order in drawn).keys() == {1, 3}
    check_uniform("jpeg", [order.jpeg_quality for order in drawn], *expected["jpeg"])


@pytest.mark.parametrize("preset", ["stock", "light"])
def test_last_stage(preset):
    drawn = draws(preset)
    check_share("JPEG first", (draw.jpeg_first for draw in drawn), 0.5)
    sincs = [draw.final_sinc for draw in drawn if draw.final_sinc is not None]
    check_share("final sinc", (draw.final_sinc is not None for draw in drawn), 0.8)
    check_uniform("cutoff", [sinc.cutoff for sinc in sincs], math.pi / 3, math.pi)
    for size in SIZES:
        check_share(f"size {size}", (sinc.size == size for sinc in sincs), 1 / len(SIZES))
    for mode in ("area", "bilinear", "bicubic"):
        check_share(mode, (draw.final_mode == mode for draw in drawn), 1 / 3)


def test_only_stock_sharpens():
    assert {name: config.sharpen_weight for name, config in PRESETS.items()} == {"plain": 0, "light": 0, "stock": 0.5}


def test_parameters_follow_the_seed_and_are_independent_of_each_other():
    again = [draw_degradation(PRESETS["stock"], seed) for seed in range(50)]
    assert again == draws("stock")[:50]
    assert len({draw.noise_seed for draw in draws("stock")}) == COUNT
    assert draw_degradation(PRESETS["stock"], 2**63 - 1) != draw_degradation(PRESETS["stock"], 2**63 - 2)
    first, second = orders("stock", 0), orders("stock", 1)
    check_share("noise of both orders", (a.noise == b.noise for a, b in zip(first, second)), 0.5)
    check_share("modes of both orders", (a.resize_mode == b.resize_mode for a, b in zip(first, second)), 1 / 3)
    both_down = (a.resize_factor < 1 and b.resize_factor < 1 for a, b in zip(first, second))
    check_share("both down", both_down, 0.7 * 0.4)
