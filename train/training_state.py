"""What training changes: trained weights, their average and AdamW's moments, gathered whole and put back.

Under FSDP2 each of them is spread over the processes; a checkpoint holds whole tensors, so that any number of processes
may go on from it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from eam_core.errors import EAMError
from train.run_folder import Checkpoint

MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingState:
    """The trained parameters by name, with their running average and optimiser."""

    def __init__(self, trained: Mapping[str, nn.Parameter], optimizer: Any):
        """Start the average at the weights as they are; `optimizer` is an AdamW over the same parameters."""
        self.trained, self.optimizer = dict(trained), optimizer
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average towards the weights."""
        for name, parameter in self.trained.items():
            self.average[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the module for a while."""
        with torch.no_grad():
            own = {name: p.detach().clone() for name, p in self.trained.items()}
            for name, p in self.trained.items():
                p.copy_(self.average[name])
            try:
                yield
            finally:
                for name, p in self.trained.items():
                    p.copy_(own[name])

    def gather(self) -> dict[str, Tensor]:
        """Return every tensor, whole and on the CPU, as "KIND.NAME"; all processes must take part."""
        kinds = {"model": self.trained, "ema": self.average}
        for kind in MOMENTS:
            kinds[kind] = {name: self.optimizer.state[p][kind] for name, p in self.trained.items()}
        return {f"{kind}.{name}": _whole(value) for kind, part in kinds.items() for name, value in part.items()}

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint, source: str) -> None:
        """Put a checkpoint's tensors back.

        Raises:
            EAMError: it holds other tensors.
        """
        self._check(checkpoint, source)
        for name, p in self.trained.items():
            _assign(p, checkpoint.tensors[f"model.{name}"])
            _assign(self.average[name], checkpoint.tensors[f"ema.{name}"])
            moments = {kind: torch.zeros_like(p) for kind in MOMENTS}
            for kind, moment in moments.items():
                _assign(moment, checkpoint.tensors[f"{kind}.{name}"])
            self.optimizer.state[p] = {"step": torch.tensor(float(checkpoint.step), device=p.device), **moments}

    def _check(self, checkpoint: Checkpoint, source: str) -> None:
        wanted = {f"{kind}.{name}" for kind in ("model", "ema", *MOMENTS) for name in self.trained}
        shapes = {f"model.{name}": p.shape for name, p in self.trained.items()}
        differ = sorted(wanted ^ checkpoint.tensors.keys()) or [
            name for name, shape in shapes.items() if checkpoint.tensors[name].shape != shape
        ]
        if differ:
            raise EAMError(
                f"expected the checkpoint in {source} to hold this run's {len(self.trained)} trained tensors, but "
                f"{len(differ)} differ, the first is {differ[0]}; it is of another architecture, use another --run-dir"
            )


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _assign(target: Tensor, whole: Tensor) -> None:
    whole = whole.to(target.device)
    if isinstance(target, DTensor):
        whole = distribute_tensor(whole, target.device_mesh, target.placements)
    target.copy_(whole)
