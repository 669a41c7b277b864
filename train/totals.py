"""Means of what a run logs, over steps and processes."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

NUM_BANDS = 4  # of sigma, in the logged losses


class Totals:
    """Sums and counts of logged values since the last entry of the log, kept on the device."""

    def __init__(self):
        """Start with nothing."""
        self.sums: dict[str, Tensor] = {}

    def add(self, out: Mapping[str, Tensor]) -> None:
        """Add named tensors of one micro-batch; with "sigma" [B], "loss" [B] is also kept per band of sigma."""
        values = dict(out)
        if "sigma" in values:
            sigma = values.pop("sigma")
            band = (sigma * NUM_BANDS).long().clamp(max=NUM_BANDS - 1)
            for index in range(NUM_BANDS):
                low, high = index / NUM_BANDS, (index + 1) / NUM_BANDS
                self._add(f"loss_sigma_{low:g}-{high:g}", values["loss"][band == index])
        for name, value in values.items():
            self._add(name, value)

    def _add(self, name: str, value: Tensor) -> None:
        entry = torch.stack([value.sum().float(), torch.tensor(float(value.numel()), device=value.device)])
        self.sums[name] = self.sums.get(name, torch.zeros_like(entry)) + entry

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes and start anew; a band of sigma without samples is left out."""
        reduced = {name: accelerator.reduce(self.sums[name], "sum").tolist() for name in sorted(self.sums)}
        self.sums = {}
        return {name: total / count for name, (total, count) in reduced.items() if count}
