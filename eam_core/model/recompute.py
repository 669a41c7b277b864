"""Gradient checkpointing: compute each block again in the backward pass instead of keeping what it saved."""

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .mmdit import Block, Guest


class RecomputedGuest:
    """A guest whose blocks, and the base's inside them, are computed twice: memory of one block, a third more time."""

    def __init__(self, guest: Guest):
        self.guest = guest

    @property
    def state(self) -> tuple[Tensor, ...]:
        """The inner guest's."""
        return self.guest.state

    @state.setter
    def state(self, value: tuple[Tensor, ...]) -> None:
        self.guest.state = value

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Run a block as a function of everything that it reads, the guest's state included."""

        def run(img: Tensor, txt: Tensor, vec: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            self.guest.state = state
            return (*self.guest.run_block(index, img, txt, vec, block), *self.guest.state)

        img, txt, *state = checkpoint(run, img, txt, vec, *self.guest.state, use_reentrant=False)
        self.guest.state = tuple(state)
        return img, txt
