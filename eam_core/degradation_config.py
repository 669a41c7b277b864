"""Ranges and probabilities of the synthetic degradation, and its presets."""

import math
from dataclasses import dataclass, replace

from .degradation_kernels import KERNEL_KINDS

Range = tuple[float, float]


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
