"""Psi-DiT: a frozen MMDiT and its trained control as one velocity network (EAM Figure 2)."""

from collections.abc import Callable

from torch import Tensor, nn

from .control import LRMemory
from .family import ControlFamily, LRState
from .image_prompt import ImagePrompt
from .mmdit import Guest, GuestChain, MMDiT


class PsiDiT(nn.Module):
    """Text and noisy latents run through the frozen base, LR latents through a control of any family around it."""

    def __init__(self, base: MMDiT, control: ControlFamily, image_prompt: ImagePrompt | None = None):
        """Join base, control and, where there is one, image prompt; freezes the base.

        Raises:
            ValueError: depth or width of the parts differ.
        """
        super().__init__()
        parts = {"a control": control} | ({} if image_prompt is None else {"an image prompt": image_prompt})
        for name, part in parts.items():
            for field in part.params.fit_fields:
                wanted, got = getattr(base.params, field), getattr(part.params, field)
                if wanted != got:
                    raise ValueError(f"expected {name} with {field} {wanted} like its base, got {got}")
        self.base, self.control, self.image_prompt = base.requires_grad_(False), control, image_prompt
        self.wrap_guest: Callable[[Guest], Guest] = _unchanged  # training may put `RecomputedGuest` here

    def remember(self, lr_latents: Tensor) -> list[LRMemory]:
        """Compute once what all steps share, where the control `can_remember`; pass it as `lr` to forward."""
        return self.control.remember(lr_latents, self.base.host(*lr_latents.shape[-2:]))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        pooled: Tensor,
        lr: LRState | None,
        *,
        keep: Tensor | None = None,
        positions: Tensor | None = None,
        control_scale: float = 1.0,
        image_tokens: Tensor | None = None,
        image_scale: float = 1.0,
    ) -> Tensor:
        """Predict the velocity under LR control.

        Args:
            latents: noisy latents [B, C, H, W].
            timestep: 1000 * sigma, [B].
            context: text tokens [B, T, context_size].
            pooled: pooled text vectors [B, pooled_size].
            lr: LR latents [B, C, H, W], or what `remember` returned for them; None runs without control.
            keep: indices [B, K] of LR tokens that stay in the sequence (masked training); all when None.
            positions: position embedding [1, tokens, D]; the base's centred crop when None.
            control_scale: factor on what the control adds to the base; 0 is the base alone.
            image_tokens: the vision tower's tokens [B, T, image_size] of the LR pictures, for the image prompt.
            image_scale: factor on what the image prompt adds; 0 is without it.

        Returns:
            Velocity [B, C, H, W].

        Raises:
            ValueError: sizes that do not fit, or image tokens without an image prompt.
        """
        guests: list[Guest] = []
        if image_tokens is not None:
            if self.image_prompt is None:
                raise ValueError("expected no image_tokens, got some; build the model with an image prompt")
            guests.append(self.image_prompt.run(self.image_prompt.embed(image_tokens), image_scale))
        if isinstance(lr, Tensor) and lr.shape[-2:] != latents.shape[-2:]:
            expected, got = tuple(latents.shape[-2:]), tuple(lr.shape[-2:])
            raise ValueError(f"expected LR latents of the size of the noisy latents {expected}, got {got}")
        if lr is not None and control_scale != 0:
            host = self.base.host(*latents.shape[-2:], positions=positions)
            positions = host.positions
            run = self.control.start(lr, host, control_scale=control_scale, keep=keep)
            guests.insert(0 if self.control.replaces_block else len(guests), run)
        # Pyright does not take a settable property for the attribute that the protocol asks for.
        guest = self.wrap_guest(GuestChain(guests))
        return self.base(latents, timestep, context, pooled, guest=guest, positions=positions)


def _unchanged(guest: Guest) -> Guest:
    return guest
