"""Draw the parameters of one sample's degradation from its seed, without touching a pixel."""

import math
from dataclasses import dataclass
from random import Random

from torch import Tensor

from .degradation_config import DegradationConfig, OrderConfig, Range
from .degradation_kernels import KERNEL_KINDS, PADDED_SIZE, blur_kernel, pad_kernel, sinc_kernel

RESIZE_MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True, kw_only=True)
class BlurDraw:
    """A blur kernel: `kind` of KERNEL_KINDS, odd `size` in taps, widths in pixels, `angle` in radians."""

    kind: str
    size: int
    sigma_x: float
    sigma_y: float
    angle: float
    beta: float

    def kernel(self) -> Tensor:
        """Build the kernel, float64 [21,21]."""
        return pad_kernel(blur_kernel(self.kind, self.size, self.sigma_x, self.sigma_y, self.angle, self.beta))


@dataclass(frozen=True, kw_only=True)
class SincDraw:
    """A low-pass kernel: odd `size` in taps, `cutoff` in radians per pixel."""

    size: int
    cutoff: float

    def kernel(self) -> Tensor:
        """Build the kernel, float64 [21,21]."""
        return pad_kernel(sinc_kernel(self.size, self.cutoff))


@dataclass(frozen=True, kw_only=True)
class OrderDraw:
    """One order of one sample; `noise` is "gaussian" (strength in grey levels of 255) or "poisson" (a factor)."""

    blur: BlurDraw | SincDraw | None
    resize_factor: float
    resize_mode: str
    noise: str
    noise_strength: float
    noise_channels: int  # 1 for grey noise
    jpeg_quality: float


@dataclass(frozen=True, kw_only=True)
class DegradationDraw:
    """Everything that two orders do to one sample, but for the noise fields, which follow from `noise_seed`."""

    orders: tuple[OrderDraw, OrderDraw]
    final_mode: str
    final_sinc: SincDraw | None
    jpeg_first: bool  # the second JPEG before the final resize and sinc, else after them
    noise_seed: int


def draw_degradation(config: DegradationConfig, seed: int) -> DegradationDraw:
    """Draw the parameters of one sample (Real-ESRGAN section 3 and its stock options).

    Args:
        config: with two orders.
        seed: of this sample; the same seed gives the same parameters on every machine.

    Returns:
        What `degrade` does to the sample.

    Raises:
        ValueError: the config has no orders and so nothing to draw.
    """
    if not config.orders:
        raise ValueError("expected a config with two orders, got one without; it has no parameters to draw")
    dice = Random(seed % 2**64)
    first, second = (_draw_order(order, config, dice) for order in config.orders)
    sinc = SincDraw(size=_draw_size(dice), cutoff=dice.uniform(math.pi / 3, math.pi))
    return DegradationDraw(
        orders=(first, second),
        final_mode=dice.choice(RESIZE_MODES),
        final_sinc=sinc if _chance(dice, config.final_sinc_probability) else None,
        jpeg_first=_chance(dice, 0.5),
        noise_seed=dice.getrandbits(63),
    )


def _chance(dice: Random, probability: float) -> bool:
    return dice.random() < probability


def _draw_size(dice: Random) -> int:
    return dice.randrange(7, PADDED_SIZE + 1, 2)


def _draw_order(order: OrderConfig, config: DegradationConfig, dice: Random) -> OrderDraw:
    low, high = order.resize_range
    factors = (dice.uniform(1, high), dice.uniform(low, 1), 1.0)
    noise = "gaussian" if _chance(dice, order.gaussian_probability) else "poisson"
    return OrderDraw(
        blur=_draw_blur(config, order.blur_sigma, dice) if _chance(dice, order.blur_probability) else None,
        resize_factor=dice.choices(factors, order.resize_probabilities)[0],
        resize_mode=dice.choice(RESIZE_MODES),
        noise=noise,
        noise_strength=dice.uniform(*(order.gaussian_sigma if noise == "gaussian" else order.poisson_scale)),
        noise_channels=1 if _chance(dice, order.grey_probability) else 3,
        jpeg_quality=dice.uniform(*order.jpeg_quality),
    )


def _draw_blur(config: DegradationConfig, sigma: Range, dice: Random) -> BlurDraw | SincDraw:
    size = _draw_size(dice)
    if _chance(dice, config.sinc_probability):
        return SincDraw(size=size, cutoff=dice.uniform(math.pi / (3 if size < 13 else 5), math.pi))
    kind = dice.choices(KERNEL_KINDS, config.kernel_probabilities)[0]
    low, high = config.plateau_beta if kind.startswith("plateau") else config.generalized_beta
    return BlurDraw(
        kind=kind,
        size=size,
        sigma_x=dice.uniform(*sigma),
        sigma_y=dice.uniform(*sigma),
        angle=dice.uniform(-math.pi, math.pi),
        # Half of the draws lie on either side of 1, where the kernel is the ordinary one.
        beta=dice.uniform(low, 1) if _chance(dice, 0.5) else dice.uniform(1, high),
    )
