"""Synthetic degradation of clean photos: the two-order Real-ESRGAN pipeline, its lighter variant and a plain one.

`degradation_draw` decides from a sample's seed what happens to it; this module does it, on the images' device.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .degradation_config import PRESETS as PRESETS
from .degradation_config import DegradationConfig as DegradationConfig
from .degradation_config import OrderConfig as OrderConfig
from .degradation_draw import BlurDraw, DegradationDraw, OrderDraw, SincDraw, draw_degradation
from .degradation_jpeg import jpeg, jpeg_each
from .degradation_kernels import blur_kernel, filter2d, sharpen
from .degradation_noise import gaussian_noise, poisson_noise

MAX_SCALE = 8


def quantize(images: Tensor) -> Tensor:
    """Clamp to [0,1] and round to the 256 levels of an 8-bit file."""
    return (images.clamp(0, 1) * 255).round() / 255


@torch.no_grad()
def degrade(
    images: Tensor,
    scale: int,
    configs: DegradationConfig | Sequence[DegradationConfig],
    seeds: Sequence[int] | Tensor,
) -> Tensor:
    """Make low-resolution images as blind super-resolution trains on, with parameters of its own for every sample.

    Source: Real-ESRGAN section 3 and its stock x4 options. A sample's result follows from its picture, config and seed
    alone; other samples of the batch do not matter. The noise differs between kinds of device, as their generators do.
    A config that sharpens (stock) does so on a copy: the training target stays what the caller has.

    Args:
        images: [B,3,H,W] in [0,1], on any device.
        scale: reduction factor, a whole number in 1..8.
        configs: one for all or one per sample; usually among PRESETS.
        seeds: one per sample.

    Returns:
        [B,3,H//scale,W//scale] in [0,1] on the same device, rounded to 8-bit levels.

    Raises:
        ValueError: not a batch of RGB images, smaller than one LR pixel, or a config or seed too few or too many.
    """
    size = _reduced_size(images, scale)
    count = len(images)
    configs = [configs] * count if isinstance(configs, DegradationConfig) else list(configs)
    seeds = [int(seed) for seed in seeds]
    for name, values in (("configs", configs), ("seeds", seeds)):
        if len(values) != count:
            raise ValueError(f"expected {count} {name}, one per image, got {len(values)}")
    items = list(images.split(1))
    items = _in_groups(
        items,
        [config.sharpen_weight or None for config in configs],
        lambda batch, indices: sharpen(batch, configs[indices[0]].sharpen_weight),
    )
    items = _in_groups(
        items,
        [None if config.orders else "plain" for config in configs],
        lambda batch, _: interpolate(batch, size, mode="bicubic", antialias=True),
    )
    twice = [index for index in range(count) if configs[index].orders]
    draws = [draw_degradation(configs[index], seeds[index]) for index in twice]
    for index, item in zip(twice, _degrade_twice([items[index] for index in twice], size, draws)):
        items[index] = item
    return quantize(torch.cat(items))


def _reduced_size(images: Tensor, scale: int) -> tuple[int, int]:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images [B,3,H,W], got {list(images.shape)}")
    height, width = images.shape[-2:]
    largest = min(MAX_SCALE, height, width)
    if scale not in range(1, largest + 1):
        raise ValueError(f"expected a whole scale between 1 and {largest}, got {scale}")
    return height // scale, width // scale


def _in_groups(
    items: list[Tensor], keys: Sequence[Hashable], function: Callable[[Tensor, list[int]], Tensor]
) -> list[Tensor]:
    """Replace the items [1,3,h,w] that share a key by function(batch, indices); those of key None stay as they are."""
    groups: dict[Hashable, list[int]] = {}
    for index, (item, key) in enumerate(zip(items, keys)):
        if key is not None:
            # A CPU is faster with one image after another: each stays in the cache. A GPU is faster with all at once.
            groups.setdefault((key, index) if item.device.type == "cpu" else key, []).append(index)
    result = list(items)
    for indices in groups.values():
        batch = function(torch.cat([items[index] for index in indices]), indices)
        for index, item in zip(indices, batch.split(1)):
            result[index] = item
    return result


def _filter_each(items: list[Tensor], filters: Sequence[BlurDraw | SincDraw | None]) -> list[Tensor]:
    kernels = {index: drawn.kernel() for index, drawn in enumerate(filters) if drawn is not None}
    return _in_groups(
        items,
        [item.shape if index in kernels else None for index, item in enumerate(items)],
        lambda batch, indices: filter2d(batch, torch.stack([kernels[index] for index in indices])),
    )


def _jpeg_each(items: list[Tensor], qualities: Sequence[float | None]) -> list[Tensor]:
    """Pass items through JPEG at their qualities; None leaves an item as it is."""
    result = list(items)
    chosen = {index: quality for index, quality in enumerate(qualities) if quality is not None}
    coded = jpeg_each([items[index][0] for index in chosen], list(chosen.values()))
    for index, item in zip(chosen, coded):
        result[index] = item[None]
    return result


def resize_aliased(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize [1,3,H,W] to `size` without antialiasing: the aliases are part of what the published pipeline teaches."""
    return interpolate(image, size, mode=mode)


def _resize_and_noise(image: Tensor, order: OrderDraw, generator: torch.Generator, size: tuple[int, int]) -> Tensor:
    height, width = (max(1, int(length * order.resize_factor)) for length in size)
    image = resize_aliased(image, (height, width), order.resize_mode)
    draw_noise = gaussian_noise if order.noise == "gaussian" else poisson_noise
    return (image + draw_noise(image, order.noise_strength, order.noise_channels, generator)).clamp_(0, 1)


def _degrade_once(
    items: list[Tensor], orders: list[OrderDraw], size: tuple[int, int], generators: list[torch.Generator]
) -> list[Tensor]:
    """Apply an order up to its JPEG; `size` is what a resize factor of 1 leads to."""
    items = _filter_each(items, [order.blur for order in orders])
    return [_resize_and_noise(*of_item, size) for of_item in zip(items, orders, generators)]


def _degrade_twice(items: list[Tensor], size: tuple[int, int], draws: list[DegradationDraw]) -> list[Tensor]:
    """Apply both orders to images [1,3,H,W] of one size; the second JPEG comes before or after the final resize."""
    if not items:
        return []
    generators = [torch.Generator(item.device).manual_seed(draw.noise_seed) for item, draw in zip(items, draws)]
    first, second = ([draw.orders[number] for draw in draws] for number in range(2))
    items = _degrade_once(items, first, (items[0].shape[-2], items[0].shape[-1]), generators)
    items = _jpeg_each(items, [order.jpeg_quality for order in first])
    items = _degrade_once(items, second, size, generators)
    items = _jpeg_each(items, [draw.orders[1].jpeg_quality if draw.jpeg_first else None for draw in draws])
    items = [resize_aliased(item, size, draw.final_mode) for item, draw in zip(items, draws)]
    items = _filter_each(items, [draw.final_sinc for draw in draws])
    return _jpeg_each(items, [None if draw.jpeg_first else draw.orders[1].jpeg_quality for draw in draws])


@torch.no_grad()
def simple_degrade(
    images: Tensor,
    scale: int,
    *,
    blur_sigma: float = 0.0,
    noise_sigma: float = 0.0,
    jpeg_quality: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Blur, reduce, add noise and compress with given values: the same picture for the same settings and seed.

    Args:
        images: [B,3,H,W] in [0,1].
        scale: reduction factor, a whole number in 1..8.
        blur_sigma: Gaussian blur before the reduction, in HR pixels; 0 for none.
        noise_sigma: Gaussian colour noise after it, in grey levels of 255; 0 for none.
        jpeg_quality: 1..100; 100 leaves JPEG out.
        generator: source of the noise.

    Returns:
        [B,3,H//scale,W//scale] in [0,1], rounded to 8-bit levels.
    """
    if blur_sigma > 0:
        images = filter2d(images, blur_kernel("iso", 2 * math.ceil(3 * blur_sigma) + 1, blur_sigma)[None])
    images = degrade(images.clamp(0, 1), scale, PRESETS["plain"], [0] * len(images))
    if noise_sigma > 0:
        images = quantize(images + gaussian_noise(images, noise_sigma, 3, generator))
    return jpeg(images, jpeg_quality) if jpeg_quality < 100 else images
