"""Randomness without state: every draw of a run follows from its seed, the sample's number and what it is for.

No generator is ever saved. A run that starts again at any step, with any number of processes and workers, makes the
same draws.
"""

import zlib

import torch

_MASK = 2**64 - 1


def sample_seed(run_seed: int, counter: int) -> int:
    """Return the seed in [0, 2^63) of the sample (or step) number `counter` of a run (splitmix64)."""
    state = (run_seed * 0x9E3779B97F4A7C15 + counter + 1) * 0x9E3779B97F4A7C15 & _MASK
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
    return (state ^ state >> 31) >> 1


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for one purpose ("crop", "noise", ...) of one sample or step."""
    return torch.Generator(device).manual_seed(sample_seed(seed, zlib.crc32(purpose.encode())))
