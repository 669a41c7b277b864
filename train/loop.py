"""The training loop that every script shares: AdamW, warm-up and cosine, clipping, EMA, a log, saves as it goes."""

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from eam_core.checkpoint import save_weights

LossFn = Callable[[int, torch.Generator], Mapping[str, Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Optimisation settings of one run.

    Args:
        steps: optimiser steps.
        batch_size: samples per step.
        lr: peak learning rate, after `warmup` steps; a cosine takes it to a twentieth at the end.
        weight_decay: AdamW's decoupled decay.
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are the ones saved.
        seed: of data, degradation and noise.
        save_every: steps between saves.
    """

    steps: int
    batch_size: int
    lr: float
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    save_every: int = 200

    def __post_init__(self):
        for field in ("steps", "batch_size", "save_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"expected {field} of at least 1, got {getattr(self, field)}")
        if self.lr < 0:
            raise ValueError(f"expected lr of at least 0, got {self.lr}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"expected ema in [0, 1), got {self.ema}")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


class EMA:
    """A running average of a module's trainable weights, warmed up so that early steps do not linger."""

    def __init__(self, module: nn.Module, decay: float):
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the module's weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, value in zip(self.module.state_dict().values(), module.state_dict().values()):
            average.lerp_(value, 1 - decay) if average.is_floating_point() else average.copy_(value)


def train(
    module: nn.Module,
    loss_fn: LossFn,
    config: LoopConfig,
    *,
    path: Path,
    metadata: Mapping[str, object],
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> nn.Module:
    """Train a module and save its averaged weights.

    Args:
        module: whose trainable parameters are optimised.
        loss_fn: (step, generator) -> named scalar losses; "loss" is the one minimised.
        config: optimisation settings.
        path: the safetensors file, rewritten every `save_every` steps; a .jsonl log grows beside it.
        metadata: stored in the file beside the config.
        validate: called with the averaged module at each save; its numbers go into the log.

    Returns:
        The averaged module.

    Raises:
        FloatingPointError: a loss was not finite; the last saved weights stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    average = EMA(module, config.ema)
    generator = torch.Generator().manual_seed(config.seed)
    started, totals = time.monotonic(), {}
    progress = tqdm(range(config.steps), desc=path.stem, dynamic_ncols=True, mininterval=5)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        losses = loss_fn(step, generator)
        if not torch.isfinite(losses["loss"]):
            raise FloatingPointError(
                f"expected a finite loss, got {losses} at step {step}; lower --lr or raise --warmup"
            )
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        average.update(module, step)
        for name, value in {**losses, "grad_norm": norm}.items():
            totals[name] = totals.get(name, 0.0) + value.item()
        done = step + 1
        if done % config.save_every == 0 or done == config.steps:
            count = (done - 1) % config.save_every + 1
            entry = {name: round(value / count, 5) for name, value in totals.items()}
            speed = done * config.batch_size / (time.monotonic() - started)
            entry |= {"step": done, "images_per_second": round(speed, 2), "lr": round(config.lr_at(step), 7)}
            if validate:
                entry |= {name: round(value, 5) for name, value in validate(average.module).items()}
            totals = {}
            tqdm.write(json.dumps(entry))
            with path.with_suffix(".jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            save_weights(
                path, average.module.state_dict(), training={**metadata, **dataclasses.asdict(config), "step": done}
            )
    return average.module
