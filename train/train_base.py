"""Train a small text-free SD3-layout base on an autoencoder's latents: rectified flow, velocity loss.

python -m train.train_base tiny --photos FOLDER_OR_TAR ... --autoencoder FILE --run-dir DIR
"""

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from eam_core.checkpoint import build_autoencoder, read_weights
from eam_core.flow import add_noise, sample_sigmas, timestep, velocity_target
from eam_core.model.autoencoder import scale_latents
from eam_core.model.layers import sincos_position_table
from eam_core.model.mmdit import MMDiT, MMDiTParams
from train.loop import LoopConfig, train
from train.options import parse_config, run_script
from train.photos import PhotoCrops

PASS_GAIN = 0.5  # size of the embedded patch beside its position: LayerNorm then hardly depends on the patch
NUM_NULL_TOKENS = 4  # a text-free base still wants a few (zero) tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """One run; `params` is the architecture, `crop_size` in pixels, `held_out` photos are kept for validation."""

    photos: tuple[str, ...] = ("data",)
    autoencoder: str = "runs/autoencoder/autoencoder.safetensors"
    run_dir: str = "runs/base"
    held_out: int = 24
    crop_size: int = 128
    params: MMDiTParams = dataclasses.field(
        default_factory=lambda: MMDiTParams(
            depth=4, hidden_size=256, context_size=64, pooled_size=64, pos_embed_max_size=64
        )
    )
    loop: LoopConfig = LoopConfig(steps=700, batch_size=32, lr=1e-3, ema=0.995)  # noqa: RUF009 (frozen)


def tiny() -> BaseConfig:
    """The embedded default's base."""
    return BaseConfig()


def debug() -> BaseConfig:
    """Seconds on a CPU: proves the path, learns nothing."""
    params = MMDiTParams(depth=2, hidden_size=128, context_size=64, pooled_size=64, pos_embed_max_size=32)
    loop = LoopConfig(steps=4, batch_size=2, lr=1e-3, save_every=2)
    return BaseConfig(params=params, loop=loop, crop_size=64, held_out=1)


@torch.no_grad()
def init_base(base: MMDiT) -> None:
    """Initialise so that the base passes its input through: velocity = latents, nearly, before any training.

    Most of a velocity is the noise in the input, and a short run never learns to carry 64 numbers per token through a
    network precisely. So patches are embedded in the directions that the position table uses least and read from the
    same ones. Blocks start closed (zero modulation, as in DiT), queries equal to keys, so that tokens find their own
    neighbourhood (Trockman and Kolter 2023, "Mimetic initialization of self-attention layers").
    """
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        if name.startswith("t_embedder.") and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        if name.endswith("attn.qkv") and isinstance(module, nn.Linear):
            query, key, _ = module.weight.chunk(3)
            key.copy_(query)
        if name.endswith("adaLN_modulation.1") and isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
    size, side = base.params.hidden_size, base.params.pos_embed_max_size
    base.pos_embed.copy_(sincos_position_table(size, side))
    embed, read = base.x_embedder.proj, base.final_layer.linear
    in_size = base.params.in_channels * base.params.patch_size**2
    used = torch.cat([base.pos_embed[0], torch.full((1, size), float(side))])  # LayerNorm removes the mean as well
    free = torch.linalg.svd(used, full_matrices=False).Vh[-in_size:]
    spread = (base.pos_embed.square().mean() + (PASS_GAIN**2 * in_size) / size).sqrt()
    embed.weight.copy_((PASS_GAIN * free.T).reshape(embed.weight.shape))
    embed.bias.zero_()
    by_patch = rearrange(free, "(c p q) d -> (p q c) d", p=base.params.patch_size, q=base.params.patch_size)
    read.weight.copy_(by_patch * spread / PASS_GAIN)


def null_text(params: MMDiTParams, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the zero context [B, 4, context_size] and pooled vector [B, pooled_size] of a text-free base."""
    context = torch.zeros(batch_size, NUM_NULL_TOKENS, params.context_size)
    return context, torch.zeros(batch_size, params.pooled_size)


def random_positions(base: MMDiT, latents: Tensor, generator: torch.Generator) -> Tensor:
    """Crop the position table anywhere in its middle half, so that no place or size of a tile is unseen."""
    height, width = (side // base.params.patch_size for side in latents.shape[-2:])
    side = base.params.pos_embed_max_size
    low, high = side // 4, side - side // 4
    offset = tuple(int(torch.randint(low, high - n + 1, (), generator=generator)) for n in (height, width))
    return base.positions(*latents.shape[-2:], offset=offset)  # type: ignore[arg-type]


def main() -> None:
    """Run from the command line."""
    config = parse_config({"tiny": tiny, "debug": debug}, description=__doc__)
    crops = PhotoCrops([Path(source) for source in config.photos], held_out=config.held_out)
    torch.manual_seed(config.loop.seed)
    autoencoder = build_autoencoder(read_weights(config.autoencoder), config.autoencoder).requires_grad_(False)
    base = MMDiT(config.params)
    init_base(base)

    def loss_fn(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        images = crops.sample(config.loop.batch_size, config.crop_size, generator)
        latents = scale_latents(autoencoder.encode(images * 2 - 1))
        noise = torch.randn(latents.shape, generator=generator)
        sigma = sample_sigmas(len(latents), generator, 1.0)
        x = add_noise(latents, noise, sigma)
        text = null_text(base.params, len(x))
        velocity = base(x, timestep(sigma), *text, positions=random_positions(base, x, generator))
        return {"loss": F.mse_loss(velocity, velocity_target(latents, noise))}

    train(
        base,
        loss_fn,
        config.loop,
        path=Path(config.run_dir) / "base.safetensors",
        metadata={"kind": "mmdit", "null_tokens": NUM_NULL_TOKENS, "crop_size": config.crop_size},
    )


if __name__ == "__main__":
    run_script(main)
