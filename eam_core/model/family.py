"""What a control family is: the one interface by which sampler, tiler, nodes and trainer know every kind of control.

Two families exist. Psi-DiT (`control.py`) acts before each block of the base, DiT-ControlNet (`controlnet.py`) adds
after it. Both are `nn.Module`s with weights in one file; `checkpoint.build_control` tells them apart.
"""

from typing import Protocol

from torch import Tensor

from .control import LRMemory
from .mmdit import Guest

FIT_FIELDS = ("depth", "hidden_size", "in_channels", "patch_size", "qk_norm")
"""Fields of `FamilyParams` in which a control and its base must agree."""

LRState = Tensor | list[LRMemory]
"""What a run starts from: LR tokens [B, K, D], or what the family remembers of them."""


class FamilyParams(Protocol):
    """The part of a family's architecture that must be that of its base."""

    @property
    def depth(self) -> int:
        """Number of blocks of the base."""
        ...

    @property
    def hidden_size(self) -> int:
        """Token width."""
        ...

    @property
    def in_channels(self) -> int:
        """Channels of the LR latents."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of a token in latent pixels."""
        ...

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised."""
        ...


class ControlFamily(Protocol):
    """A trained module that steers a frozen MMDiT by LR latents."""

    @property
    def params(self) -> FamilyParams:
        """The architecture."""
        ...

    @property
    def can_remember(self) -> bool:
        """Whether the LR state is the same at every step, so that `remember` may be used."""
        ...

    def embed(self, lr_latents: Tensor, positions: Tensor, keep: Tensor | None = None) -> Tensor:
        """Turn LR latents [B, C, H, W] into LR tokens; `keep` [B, K] names the tokens that count."""
        ...

    def remember(self, lr_tokens: Tensor) -> list[LRMemory]:
        """Compute what every step can share; ValueError where `can_remember` is false."""
        ...

    def run(self, lr: LRState, control_scale: float = 1.0) -> Guest:
        """Start one forward pass as a guest of the base."""
        ...
