"""What the tests of DiT-ControlNet share: small random bases with a control on them, and inputs."""

import dataclasses

import torch
from torch import nn

from eam_core.model.control_init import init_controlnet
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.psi_dit import PsiDiT

PLAIN = MMDiTParams(depth=4, hidden_size=128, context_size=32, pooled_size=16, pos_embed_max_size=16)
BASES = {"plain": PLAIN, "sd3.5": dataclasses.replace(PLAIN, qk_norm=True, dual_attention_blocks=(0, 1, 2))}
NUM_BLOCKS = (1, 2, 3, 4)
SMALL = ControlNetParams(depth=3, hidden_size=64, num_blocks=2)


def random_(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.state_dict().values():
        parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5)
    return module


def fresh(num_blocks: int, kind: str = "plain") -> PsiDiT:
    base = random_(MMDiT(BASES[kind]))
    control = ControlNet(ControlNetParams.for_base(base.params, num_blocks))
    init_controlnet(control, base.state_dict())
    return PsiDiT(base, control)


def trained(num_blocks: int, kind: str = "plain") -> PsiDiT:
    psi = fresh(num_blocks, kind)
    random_(psi.control.lr_embedder)
    random_(psi.control.zero_linears)
    return psi


def inputs(height: int = 11, width: int = 14) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return the base's inputs and the LR latents."""
    generator = torch.Generator().manual_seed(1)
    latents, lr = torch.randn(2, 2, 16, height, width, generator=generator)
    context = torch.randn(2, 7, 32, generator=generator)
    return (latents, torch.tensor([700.0, 200.0]), context, torch.randn(2, 16, generator=generator)), lr
