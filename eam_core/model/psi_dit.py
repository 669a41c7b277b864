"""Psi-DiT: a frozen MMDiT and its trained control stream as one velocity network (EAM Figure 2)."""

from torch import Tensor, nn

from .control import ControlStream, LRMemory
from .mmdit import MMDiT


class PsiDiT(nn.Module):
    """Text and noisy latents run through the frozen base, LR latents through the control stream before each block."""

    def __init__(self, base: MMDiT, control: ControlStream):
        """Join base and control; freezes the base.

        Raises:
            ValueError: depth or width of the two differ.
        """
        super().__init__()
        for field in ("depth", "hidden_size", "in_channels", "patch_size", "qk_norm"):
            wanted, got = getattr(base.params, field), getattr(control.params, field)
            if wanted != got:
                raise ValueError(f"expected a control with {field} {wanted} like its base, got {got}")
        self.base, self.control = base.requires_grad_(False), control

    def remember(self, lr_latents: Tensor) -> list[LRMemory]:
        """Compute the LR keys and values of all blocks once (`self` and `cross`); pass them as `lr` to forward."""
        return self.control.remember(self.control.embed(lr_latents, self.base.positions(*lr_latents.shape[-2:])))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        pooled: Tensor,
        lr: Tensor | list[LRMemory],
        *,
        keep: Tensor | None = None,
        positions: Tensor | None = None,
        control_scale: float = 1.0,
    ) -> Tensor:
        """Predict the velocity under LR control.

        Args:
            latents: noisy latents [B, C, H, W].
            timestep: 1000 * sigma, [B].
            context: text tokens [B, T, context_size].
            pooled: pooled text vectors [B, pooled_size].
            lr: LR latents [B, C, H, W], or what `remember` returned for them.
            keep: indices [B, K] of LR tokens that stay in the sequence (masked training); all when None.
            positions: position embedding [1, tokens, D]; the base's centred crop when None.
            control_scale: factor on what the control adds to the base; 0 is the base alone.

        Returns:
            Velocity [B, C, H, W].
        """
        if isinstance(lr, Tensor):
            if lr.shape[-2:] != latents.shape[-2:]:
                expected, got = tuple(latents.shape[-2:]), tuple(lr.shape[-2:])
                raise ValueError(f"expected LR latents of the size of the noisy latents {expected}, got {got}")
            if positions is None:
                positions = self.base.positions(*latents.shape[-2:])
            lr = self.control.embed(lr, positions, keep)
        guest = self.control.run(lr, control_scale)
        return self.base(latents, timestep, context, pooled, guest=guest, positions=positions)
