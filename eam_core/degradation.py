"""Synthetic degradation of clean photos: the two-order Real-ESRGAN pipeline, its lighter variants and a plain one."""

import io
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from .degradation_kernels import KERNEL_KINDS, PADDED_SIZE, blur_kernel, filter2d, pad_kernel, sharpen, sinc_kernel

Range = tuple[float, float]
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """One order: blur, resize, noise, JPEG. Ranges are uniform; the defaults are the first order of Real-ESRGAN x4."""

    blur_probability: float = 1.0
    blur_sigma: Range = (0.2, 3.0)  # pixels
    resize_probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)  # up, down, keep
    resize_range: Range = (0.15, 1.5)
    gaussian_probability: float = 0.5  # otherwise Poisson noise
    gaussian_sigma: Range = (1.0, 30.0)  # grey levels of 255
    poisson_scale: Range = (0.05, 3.0)
    grey_probability: float = 0.4
    jpeg_quality: Range = (30.0, 95.0)

    def __post_init__(self) -> None:
        for name in ("blur_probability", "gaussian_probability", "grey_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} in 0..1, got {getattr(self, name)}")
        if min(self.resize_probabilities) < 0 or not math.isclose(sum(self.resize_probabilities), 1):
            raise ValueError(f"expected resize_probabilities that sum to 1, got {self.resize_probabilities}")
        if not 0 < self.resize_range[0] <= 1 <= self.resize_range[1]:
            raise ValueError(f"expected a resize_range around 1, got {self.resize_range}")
        for name in ("blur_sigma", "gaussian_sigma", "poisson_scale", "jpeg_quality"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"expected {name} as (low, high) above 0, got {(low, high)}")


@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """The whole degradation. Without orders it is a plain bicubic reduction; with two it is Real-ESRGAN's."""

    orders: tuple[OrderConfig, ...] = ()
    sharpen_weight: float = 0.0  # unsharp mask on the HR image first; 0 for none
    kernel_probabilities: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # in the order of KERNEL_KINDS
    sinc_probability: float = 0.1
    final_sinc_probability: float = 0.8
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)

    def __post_init__(self) -> None:
        if len(self.orders) not in (0, 2):
            raise ValueError(f"expected no or two degradation orders, got {len(self.orders)}")
        if len(self.kernel_probabilities) != len(KERNEL_KINDS) or not math.isclose(sum(self.kernel_probabilities), 1):
            raise ValueError(
                f"expected {len(KERNEL_KINDS)} probabilities that sum to 1, got {self.kernel_probabilities}"
            )


_STOCK_SECOND = OrderConfig(
    blur_probability=0.8,
    blur_sigma=(0.2, 1.5),
    resize_probabilities=(0.3, 0.4, 0.3),
    resize_range=(0.3, 1.2),
    gaussian_sigma=(1, 25),
    poisson_scale=(0.05, 2.5),
)
_LIGHT_FIRST = OrderConfig(
    resize_range=(0.3, 1.5), gaussian_sigma=(1, 15), poisson_scale=(0.05, 2), jpeg_quality=(60, 95)
)
_LIGHT_SECOND = replace(
    _STOCK_SECOND,
    blur_probability=0.5,
    resize_range=(0.6, 1.2),
    gaussian_sigma=(1, 12),
    poisson_scale=(0.05, 1),
    jpeg_quality=(60, 100),
)
PRESETS = {
    "plain": DegradationConfig(),
    "light": DegradationConfig(orders=(_LIGHT_FIRST, _LIGHT_SECOND)),
    "stock": DegradationConfig(orders=(OrderConfig(), _STOCK_SECOND), sharpen_weight=0.5),
}


class _Dice:
    """Scalar draws from one generator."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator
        self.device = generator.device if generator is not None else torch.device("cpu")

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator, device=self.device).item()

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def choice(self, weights: tuple[float, ...]) -> int:
        point = self.uniform(0, sum(weights))
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return len(weights) - 1


def quantize(images: Tensor) -> Tensor:
    """Clamp to [0,1] and round to the 256 levels of an 8-bit file."""
    return (images.clamp(0, 1) * 255).round() / 255


def jpeg(images: Tensor, quality: float) -> Tensor:
    """Pass images through real JPEG files in memory (Pillow, 4:2:0); no gradient, and always on the CPU.

    Args:
        images: [B,3,H,W] in [0,1].
        quality: 1..100, rounded to a whole number.

    Returns:
        [B,3,H,W], 8-bit levels.
    """
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=round(quality))
        decoded.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(images) / 255


def gaussian_noise(images: Tensor, sigma: float, channels: int, generator: torch.Generator | None) -> Tensor:
    """Draw noise of `sigma` grey levels of 255; one channel repeats over all colours (grey noise).

    Args:
        images: [B,3,H,W] in [0,1], for shape and device.
        sigma: standard deviation in grey levels.
        channels: 3 for colour noise, 1 for grey noise.
        generator: source of randomness.

    Returns:
        [B,3,H,W], to be added to the images.
    """
    batch, colours, height, width = images.shape
    device = generator.device if generator is not None else images.device
    noise = torch.randn(batch, channels, height, width, generator=generator, device=device)
    return (noise * (sigma / 255)).to(images).expand(batch, colours, height, width)


def poisson_noise(images: Tensor, scale: float, channels: int, generator: torch.Generator | None) -> Tensor:
    """Draw shot noise, stronger where an image has few distinct levels (Real-ESRGAN's torch form).

    Args:
        images: [B,3,H,W] in [0,1].
        scale: factor on the noise.
        channels: 3 for colour noise, 1 for noise of the luma that all colours share.
        generator: source of randomness.

    Returns:
        [B,3,H,W], to be added to the images.
    """
    source = images
    if channels == 1:
        source = torch.einsum("bchw,c->bhw", images, images.new_tensor(_LUMA))[:, None]
    levels = (source.clamp(0, 1) * 255).round()
    noise = []
    for item in levels:
        distinct = int((torch.bincount(item.flatten().long(), minlength=256) > 0).sum())
        photons = 2.0 ** math.ceil(math.log2(distinct))
        clean = item / 255
        expected = clean * photons
        device = generator.device if generator is not None else expected.device
        drawn = torch.poisson(expected.to(device), generator=generator).to(expected)
        noise.append(scale * (drawn / photons - clean))
    return torch.stack(noise).expand_as(images)


def _draw_kernel(config: DegradationConfig, sigma: Range, dice: _Dice) -> Tensor:
    size = _draw_size(dice)
    if dice.chance(config.sinc_probability):
        return pad_kernel(sinc_kernel(size, dice.uniform(math.pi / (3 if size < 13 else 5), math.pi)))
    kind = KERNEL_KINDS[dice.choice(config.kernel_probabilities)]
    low, high = config.plateau_beta if kind.startswith("plateau") else config.generalized_beta
    # Half of the draws lie on either side of 1, where the kernel is the ordinary one.
    beta = dice.uniform(low, 1) if dice.chance(0.5) else dice.uniform(1, high)
    sigma_x, sigma_y = dice.uniform(*sigma), dice.uniform(*sigma)
    return pad_kernel(blur_kernel(kind, size, sigma_x, sigma_y, dice.uniform(-math.pi, math.pi), beta))


def _draw_size(dice: _Dice) -> int:
    return 7 + 2 * dice.choice((1.0,) * ((PADDED_SIZE - 5) // 2))


def _draw_mode(dice: _Dice) -> str:
    # Without antialiasing, as the published pipeline resizes: its aliasing is part of what is learned.
    return ("area", "bilinear", "bicubic")[dice.choice((1.0, 1.0, 1.0))]


def _blur_resize_noise(
    image: Tensor, order: OrderConfig, size: tuple[int, int], config: DegradationConfig, dice: _Dice
) -> Tensor:
    """Apply an order up to its JPEG; `size` is what a resize factor of 1 leads to."""
    if dice.chance(order.blur_probability):
        image = filter2d(image, _draw_kernel(config, order.blur_sigma, dice)[None])
    low, high = order.resize_range
    factor = (dice.uniform(1, high), dice.uniform(low, 1), 1.0)[dice.choice(order.resize_probabilities)]
    image = interpolate(image, (max(1, int(size[0] * factor)), max(1, int(size[1] * factor))), mode=_draw_mode(dice))
    gaussian = dice.chance(order.gaussian_probability)
    channels = 1 if dice.chance(order.grey_probability) else 3
    if gaussian:
        noise = gaussian_noise(image, dice.uniform(*order.gaussian_sigma), channels, dice.generator)
    else:
        noise = poisson_noise(image, dice.uniform(*order.poisson_scale), channels, dice.generator)
    return (image + noise).clamp(0, 1)


def _degrade_twice(image: Tensor, size: tuple[int, int], config: DegradationConfig, dice: _Dice) -> Tensor:
    """Apply both orders to one image [1,3,H,W]; the last JPEG comes before or after the final resize and sinc."""
    first, second = config.orders
    image = _blur_resize_noise(image, first, (image.shape[-2], image.shape[-1]), config, dice)
    image = jpeg(image, dice.uniform(*first.jpeg_quality))
    image = _blur_resize_noise(image, second, size, config, dice)
    quality, mode, jpeg_first = dice.uniform(*second.jpeg_quality), _draw_mode(dice), dice.chance(0.5)
    if jpeg_first:
        image = jpeg(image, quality)
    image = interpolate(image, size, mode=mode)
    if dice.chance(config.final_sinc_probability):
        image = filter2d(image, sinc_kernel(_draw_size(dice), dice.uniform(math.pi / 3, math.pi))[None])
    return image if jpeg_first else jpeg(image, quality)


@torch.no_grad()
def degrade(images: Tensor, scale: int, config: DegradationConfig, generator: torch.Generator | None = None) -> Tensor:
    """Make low-resolution images as blind super-resolution trains on, with fresh parameters for every sample.

    Source: Real-ESRGAN section 3 and its stock x4 options. JPEG runs through Pillow on the CPU; a version that runs
    on a GPU or passes gradients does not exist yet.

    Args:
        images: [B,3,H,W] in [0,1].
        scale: reduction factor, at least 1.
        config: usually one of PRESETS.
        generator: source of every draw; its device is where the noise is drawn.

    Returns:
        [B,3,H//scale,W//scale] in [0,1], rounded to 8-bit levels.

    Raises:
        ValueError: not a batch of RGB images, or smaller than one LR pixel.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images [B,3,H,W], got {list(images.shape)}")
    size = (images.shape[-2] // scale, images.shape[-1] // scale) if scale >= 1 else (0, 0)
    if min(size) < 1:
        raise ValueError(f"expected a scale between 1 and {min(images.shape[-2:])}, got {scale}")
    if config.sharpen_weight:
        images = sharpen(images, config.sharpen_weight)
    if not config.orders:
        return quantize(interpolate(images, size, mode="bicubic", antialias=True))
    dice = _Dice(generator)
    return quantize(torch.cat([_degrade_twice(image[None], size, config, dice) for image in images]))


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
        scale: reduction factor, at least 1.
        blur_sigma: Gaussian blur before the reduction, in HR pixels; 0 for none.
        noise_sigma: Gaussian colour noise after it, in grey levels of 255; 0 for none.
        jpeg_quality: 1..100; 100 leaves JPEG out.
        generator: source of the noise.

    Returns:
        [B,3,H//scale,W//scale] in [0,1], rounded to 8-bit levels.
    """
    if blur_sigma > 0:
        images = filter2d(images, blur_kernel("iso", 2 * math.ceil(3 * blur_sigma) + 1, blur_sigma)[None])
    images = degrade(images.clamp(0, 1), scale, PRESETS["plain"])
    if noise_sigma > 0:
        images = quantize(images + gaussian_noise(images, noise_sigma, 3, generator))
    return jpeg(images, jpeg_quality) if jpeg_quality < 100 else images
