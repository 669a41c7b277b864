"""What a training script tells the trainer: what is trained, and how it is validated and exported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from train.data import Batch


class Validation(NamedTuple):
    """Scores by name, and pictures [3, H, W] in [0, 1] by name."""

    scores: dict[str, float]
    pictures: dict[str, Tensor]


class Task(Protocol):
    """What is trained and how: all that the trainer does not know.

    `module(batch, step)` returns named tensors: "loss" [B] is minimised, others are logged as means; with "sigma" [B]
    the loss is logged per band of sigma as well. Parameters that shall not be trained have requires_grad False.
    """

    name: str
    module: nn.Module
    batches_may_leave_parts_unused: bool
    unsharded: tuple[str, ...]  # frozen submodules that FSDP leaves whole, in their own precision
    val_count: int  # held-out pictures that are validated
    val_size: int  # their size in pixels

    def validate(self, batch: Batch) -> Validation:
        """Score the module on held-out pictures; its trained weights are the averaged ones during this call."""
        ...

    def export(self, averaged: Mapping[str, Tensor], folder: Path, training: Mapping[str, Any]) -> list[Path]:
        """Write the averaged weights (by parameter name of the module) as users load them."""
        ...


def averaged_state(part: nn.Module, averaged: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a submodule's state dict with the averaged weights in place of those trained.

    Args:
        part: the submodule.
        averaged: what `Task.export` is given.
        prefix: under which the part's parameters stand there, e.g. "model.control.".
    """
    own = {name.removeprefix(prefix): value for name, value in averaged.items() if name.startswith(prefix)}
    return {**part.state_dict(), **own}
