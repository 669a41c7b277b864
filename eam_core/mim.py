"""Masked training of the control (EAM section 3.2): how many LR tokens a step hides, and which ones per sample.

Masked tokens leave the sequence (`PsiDiT`'s `keep`), so a masked step is also a cheaper one; the tokens that stay keep
their position embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

MaskStrategy = Literal["none", "fixed", "random", "pms"]
MaskSigma = Literal["uniform", "normal"]


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How the mask ratio of a step is chosen (EAM Table 4).

    Args:
        strategy: "none"; "fixed": always `ratio`; "random": uniform in [min_ratio, max_ratio]; "pms": Eq. 1, from
            almost everything masked down to `min_ratio`.
        ratio: share of LR tokens that "fixed" masks; 0.5, 0.75 and 0.85 in Table 4.
        min_ratio: lowest ratio of "random", and r_min of "pms".
        max_ratio: highest ratio of "random".
        clip: c of Eq. 1, the number of stairs on the way down. The paper does not give its value.
        sigma: the random term of Eq. 1. The paper says normal, which leaves the stair's range, while its text speaks of
            a ratio "randomly picked from a corresponding range": uniform in [0, 1].
        progressive_share: k / t of Eq. 1, the share of the masked steps that the stairs take.
    """

    strategy: MaskStrategy = "pms"
    ratio: float = 0.75
    min_ratio: float = 0.75
    max_ratio: float = 1.0
    clip: int = 5
    sigma: MaskSigma = "uniform"
    progressive_share: float = 0.5

    def __post_init__(self):
        for field, kind in (("strategy", MaskStrategy), ("sigma", MaskSigma)):
            if getattr(self, field) not in get_args(kind):
                raise ValueError(f"expected {field} to be one of {get_args(kind)}, got {getattr(self, field)!r}")
        for field in ("ratio", "min_ratio", "max_ratio", "progressive_share"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"expected {field} in [0, 1], got {getattr(self, field)}")
        if self.min_ratio > self.max_ratio:
            raise ValueError(f"expected min_ratio of at most max_ratio {self.max_ratio}, got {self.min_ratio}")
        if self.clip < 1:
            raise ValueError(f"expected clip of at least 1, got {self.clip}; 5 is usual")


def mask_ratio(config: MaskConfig, step: int, num_steps: int, generator: torch.Generator) -> float:
    """Choose the share of LR tokens that one training step masks (EAM Eq. 1 and Table 4).

    Eq. 1 with p = step, t = num_steps and k = progressive_share * t:
    r = 1 - (1 - r_min) * (floor(p * c / k) + sigma) / c while p < k, then r_min. (The paper's text says that the ratio
    ends at "r_max"; its formula says r_min, which is what makes the task go from almost text-to-image to restoration.)

    Args:
        config: the strategy and its numbers.
        step: number of the step among the masked ones, from 0.
        num_steps: how many masked steps the run has; the unmasked steps after them (SFT) are not counted.
        generator: source of this step's draw. Processes of one step must give it the same state, so that their
            sequences are equally long.

    Returns:
        Mask ratio in [0, 1].

    Raises:
        ValueError: step is not in [0, num_steps).
    """
    if not 0 <= step < num_steps:
        raise ValueError(f"expected a step from 0 to {num_steps - 1}, got {step}; steps after them are not masked")
    if config.strategy == "none":
        return 0.0
    if config.strategy == "fixed":
        return config.ratio
    if config.strategy == "random":
        span = config.max_ratio - config.min_ratio
        return config.min_ratio + span * torch.rand((), generator=generator, device=generator.device).item()
    num_progressive = round(config.progressive_share * num_steps)
    if step >= num_progressive:
        return config.min_ratio
    draw = torch.rand if config.sigma == "uniform" else torch.randn
    sigma = draw((), generator=generator, device=generator.device).item()
    stair = step * config.clip // num_progressive
    ratio = 1 - (1 - config.min_ratio) * (stair + sigma) / config.clip
    return min(max(ratio, 0.0), 1.0)


def keep_tokens(num_tokens: int, ratio: float, generators: Sequence[torch.Generator]) -> Tensor | None:
    """Draw the LR tokens that stay in the sequence, for each sample its own.

    Args:
        num_tokens: LR tokens of one sample.
        ratio: share that is masked, in [0, 1].
        generators: one per sample, all on one device.

    Returns:
        Indices [B, K] in rising order, K = max(1, round((1 - ratio) * num_tokens)); None when no token is masked.

    Raises:
        ValueError: num_tokens or ratio is out of range.
    """
    if num_tokens < 1:
        raise ValueError(f"expected num_tokens of at least 1, got {num_tokens}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"expected ratio in [0, 1], got {ratio}")
    num_kept = max(1, round((1 - ratio) * num_tokens))
    if num_kept == num_tokens:
        return None
    drawn = [torch.randperm(num_tokens, generator=g, device=g.device)[:num_kept].sort().values for g in generators]
    return torch.stack(drawn)
