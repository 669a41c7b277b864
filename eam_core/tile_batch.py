"""How many tiles go through a network at once: as set, or as many as a measure of the first one says that fit."""

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .out_of_memory import free_unused, is_out_of_memory

AUTO = 0
"""tile_batch that is chosen: by the size of the tiles, and on a GPU by measuring memory too."""

# Pixels of latents that keep a device busy; with fewer at once it waits between calls, with more it is no faster.
_BUSY = {"cpu": 8 * 32**2, "cuda": 128**2}  # measured on a CPU; on a GPU one tile of SD3's own size, not measured
_SHARE = 0.8  # of the free memory; the rest is for what grows beside the tiles


class MemoryMeter(Protocol):
    """Measures a device's memory."""

    def start(self) -> None:
        """Begin to watch."""
        ...

    def peak(self) -> int:
        """Return the most bytes that were taken since `start` above what was taken then."""
        ...

    def free(self) -> int:
        """Return how many bytes can be taken now."""
        ...


class CudaMeter:
    """torch's own counts for a CUDA device; `start` resets its peak."""

    def __init__(self, device: torch.device):
        """Keep the device."""
        self.device, self.before = device, 0

    def start(self) -> None:
        """Begin to watch, see `MemoryMeter`."""
        torch.cuda.reset_peak_memory_stats(self.device)
        self.before = torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        """Return bytes, see `MemoryMeter`."""
        return torch.cuda.max_memory_allocated(self.device) - self.before

    def free(self) -> int:
        """Return bytes, see `MemoryMeter`."""
        kept_by_torch = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept_by_torch


def meter_for(device: torch.device) -> MemoryMeter | None:
    """Return a device's meter; None where memory is not measured."""
    return CudaMeter(device) if device.type == "cuda" else None


def most_auto(device: torch.device, latent_pixels: int) -> int:
    """Return how many tiles `AUTO` runs at once at most; one on devices whose memory is not measured.

    Args:
        device: of the network.
        latent_pixels: of a tile, in all pictures of a batch together.
    """
    return max(1, _BUSY.get(device.type, 0) // latent_pixels)


Tell = Callable[[str], None]
"""Is told what users should know."""


def warn(text: str) -> None:
    """Tell by a warning."""
    warnings.warn(text, stacklevel=2)


def check_tile_batch(size: int) -> None:
    """Refuse a number of tiles that is neither at least 1 nor `AUTO`."""
    if size < 0:
        raise ValueError(f"expected tile_batch of at least 1, or 0 to let it be measured, got {size}; use 1")


class TileBatch:
    """How many tiles go through a network at once: halved for the rest of a run when memory runs out."""

    def __init__(
        self,
        size: int,
        *,
        most_auto: int = 1,
        meter: MemoryMeter | None = None,
        release: Callable[[], bool] | None = None,
        tell: Tell = warn,
    ):
        """Keep the settings.

        Args:
            size: tiles at once; `AUTO` runs one, measures what it took, and takes as many as fit from then on.
            most_auto: most of them with `AUTO`, see the function of that name.
            meter: of the device; without one, `AUTO` takes the most at once.
            release: frees what a run keeps to save time and says whether there was anything; the same tiles are then
                tried again before their number is halved.
            tell: is told of smaller batches.
        """
        check_tile_batch(size)
        self.meter = meter if size == AUTO and most_auto > 1 else None
        """Until the first tile was measured."""
        self.size, self.most_auto = size or (1 if self.meter else most_auto), most_auto
        self.release, self.tell = release, tell
        self.headroom = 1.0
        """How many times as large as the tiles that run now later ones may be."""

    def run(self, fn: Callable[[int], Tensor], num_left: int) -> tuple[Tensor, int]:
        """Run as many of the tiles that are left as go at once; half as many where memory runs out, down to one.

        Args:
            fn: runs the next so many tiles.
            num_left: how many are left.

        Returns:
            fn's result, and of how many tiles it is.

        Raises:
            torch.OutOfMemoryError: even one tile does not fit; or what else the device says then.
        """
        while True:
            num = min(self.size, num_left)
            try:
                return self._measured(fn, num), num
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failed = error.with_traceback(None)  # whose frames hold the failed call's tensors
            self.meter = None
            released = self.release is not None and self.release()
            free_unused()
            if released:
                continue
            if num == 1:
                raise failed
            self.size = num // 2
            self.tell(f"out of memory with {num} tiles at once; going on with {self.size}")

    def _measured(self, fn: Callable[[int], Tensor], num: int) -> Tensor:
        """Run the tiles; the first time, let what they took decide how many follow."""
        meter = self.meter
        if meter is None:
            return fn(num)
        meter.start()
        result = fn(num)
        each = max(1, int(self.headroom * meter.peak()) // num)
        self.size = min(self.most_auto, max(1, int(_SHARE * meter.free()) // each))
        self.meter = None
        return result
