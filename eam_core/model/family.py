"""What a control family is: the one interface by which sampler, tiler, nodes and trainer know every kind of control.

Four families exist. Psi-DiT (`control.py`) acts before each block of the base, DiT-ControlNet (`controlnet.py`) adds
after it, DiT4SR (`dit4sr.py`) computes the block itself from the base's own layers, TSD-SR (`tsdsr.py`) only changes
weights. All are `nn.Module`s; `checkpoint.build_control` tells their files apart.
"""

from typing import Protocol

from torch import Tensor

from .control import LRMemory
from .mmdit import Guest, Host

LRState = Tensor | list[LRMemory]
"""What a run starts from: LR latents [B, C, H, W], or what the family remembers of them."""


NO_STRENGTH = "control_scale has no effect except at 0: this control acts whole or not at all"
"""What users are told who set another one than 0 or 1 where a family has no strength."""


class FamilyParams(Protocol):
    """The part of a family's architecture that the rest asks for; the first five must be those of its base."""

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

    @property
    def fit_fields(self) -> tuple[str, ...]:
        """Names of the fields in which it must agree with its base's `MMDiTParams`."""
        ...

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the fields that may be changed after loading; tensors do not tell them for sure."""
        ...

    @property
    def preset(self) -> str:
        """Name in `presets.SPECS` of the settings that it is sampled with."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for whoever loads it, such as its licence."""
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

    @property
    def replaces_block(self) -> bool:
        """Whether its runs compute a block themselves; they stand nearest to it, in the place of the block."""
        ...

    @property
    def has_strength(self) -> bool:
        """Whether a `control_scale` other than 1 means something; 0 always means no control at all."""
        ...

    def remember(self, lr_latents: Tensor, host: Host) -> list[LRMemory]:
        """Compute what every step can share; ValueError where `can_remember` is false."""
        ...

    def start(self, lr: LRState, host: Host, *, control_scale: float = 1.0, keep: Tensor | None = None) -> Guest:
        """Start one forward pass as a guest of the base.

        Args:
            lr: LR latents of the noisy latents' size, scaled as the network takes them, or what `remember` returned.
            host: the base at the start of this pass.
            control_scale: factor on what the control adds.
            keep: indices [B, K] of the LR tokens that count; all when None.
        """
        ...
