"""Restoring while training: sample as a user would, at any place of the position table, and show what came out."""

import torch
from torch import Tensor

from eam_core.flow import denoised_from_velocity, timestep
from eam_core.images import resize
from eam_core.model.mmdit import MMDiT
from eam_core.model.psi_dit import PsiDiT
from eam_core.sampling import initial_latents
from train.pairs import Pairs

NUM_SHOWN = 4


def random_positions(base: MMDiT, latents: Tensor, generator: torch.Generator) -> Tensor:
    """Crop the position table anywhere in its middle half, so that no place or size of a tile is unseen."""
    height, width = (side // base.params.patch_size for side in latents.shape[-2:])
    side = base.params.pos_embed_max_size
    low, high = side // 4, side - side // 4
    offset = tuple(int(torch.randint(low, high - n + 1, (), generator=generator)) for n in (height, width))
    return base.positions(*latents.shape[-2:], offset=offset)  # type: ignore[arg-type]


def sample(
    model: PsiDiT,
    lr_latents: Tensor,
    text: tuple[Tensor, Tensor],
    noise: Tensor,
    sigmas: Tensor,
    *,
    positions: Tensor | None = None,
    image_tokens: Tensor | None = None,
) -> Tensor:
    """Run Euler steps down `sigmas` from the LR latents; only the last step keeps its graph.

    Returns:
        Denoised latents [B, C, H, W].
    """
    x = initial_latents(noise, lr_latents, float(sigmas[0]))
    for index in range(len(sigmas) - 1):
        sigma = sigmas[index].expand(len(x)).to(x.device)
        last = index == len(sigmas) - 2
        with torch.set_grad_enabled(torch.is_grad_enabled() and last):
            velocity = model(x, timestep(sigma), *text, lr_latents, positions=positions, image_tokens=image_tokens)
            denoised = denoised_from_velocity(x, velocity.float(), sigma)
        x = denoised + sigmas[index + 1] / sigmas[index] * (x - denoised)
    return x


def strips(pairs: Pairs, restored: Tensor) -> Tensor:
    """Lay the first few pictures side by side: enlarged LR above restored (in [-1, 1]) above HR; [3, 3H, nW]."""
    rows = (resize(pairs.lr, (pairs.hr.shape[-2], pairs.hr.shape[-1])), (restored / 2 + 0.5).clamp(0, 1), pairs.hr)
    return torch.cat([torch.cat(list(row[:NUM_SHOWN]), dim=-1) for row in rows], dim=-2).cpu()
