"""The settings that every training run shares: optimisation, saving, logging."""

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a run optimises, saves and logs.

    Args:
        steps: optimiser steps of the whole run.
        batch_size: samples per optimiser step, over all processes and accumulated micro-batches together.
        accumulation: micro-batches per optimiser step.
        lr: peak learning rate of AdamW.
        lr_schedule: after the warm-up, "cosine" falls to a twentieth of lr at the end, "constant" stays.
        warmup: steps over which the learning rate rises linearly.
        weight_decay: AdamW's decoupled decay.
        beta1: AdamW's decay of the gradient's average.
        beta2: AdamW's decay of the squared gradient's average.
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are those validated and exported.
        precision: "no" computes in float32, "bf16" in bfloat16 autocast over float32 weights.
        seed: of every draw of the run.
        save_every: steps between checkpoints, which also export the averaged weights.
        keep_last: checkpoints that stay on disk.
        log_every: steps between entries of the log and TensorBoard.
        validate_every: steps between validations; 0 validates at the end only.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    lr: float
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 50
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0
    ema: float = 0.999
    precision: Literal["no", "bf16"] = "no"
    seed: int = 0
    save_every: int = 500
    keep_last: int = 2
    log_every: int = 25
    validate_every: int = 500

    def __post_init__(self):
        for field in ("steps", "batch_size", "accumulation", "save_every", "keep_last", "log_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"expected {field} of at least 1, got {getattr(self, field)}")
        for field in ("warmup", "weight_decay", "lr", "seed", "validate_every"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"expected {field} of at least 0, got {getattr(self, field)}")
        for field in ("ema", "beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"expected {field} in [0, 1), got {getattr(self, field)}")
        if not self.clip > 0:
            raise ValueError(f"expected clip above 0, got {self.clip}; inf never clips")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.lr_schedule == "constant":
            return self.lr
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


# What may change between the starts of one run: it has no influence on the weights.
FREE_FIELDS = frozenset({"save_every", "keep_last", "log_every", "validate_every", "run_dir"})
