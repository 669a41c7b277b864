"""Train a small text-free SD3-layout base on an autoencoder's latents: rectified flow, velocity loss.

python -m train.train_base tiny --data FOLDER_OR_TAR ... --autoencoder FILE --run-dir DIR
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from eam_core.checkpoint import build_autoencoder
from eam_core.flow import add_noise, sample_sigmas, timestep, velocity_target
from eam_core.model.autoencoder import PatchAutoencoder, scale_latents
from eam_core.model.layers import sincos_position_table
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.presets import EMBEDDED, NUM_NULL_TOKENS
from eam_core.weight_files import read_weights, save_weights
from train.config import LoopConfig
from train.data import Batch, DataConfig
from train.objective import sample_noise
from train.options import parse_config, run_script
from train.parts import NoText
from train.restoring import random_positions
from train.seeding import generator, sample_seed
from train.task import Validation, averaged_state
from train.trainer import Trainer

PASS_GAIN = 0.5  # size of the embedded patch beside its position: LayerNorm then hardly depends on the patch
VAL_COUNT = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """One run.

    Args:
        run_dir: folder of the run.
        autoencoder: weight file whose latents are learned.
        depth: number of blocks; ComfyUI wants hidden_size / 64.
        hidden_size: token width.
        pos_embed_max_size: side of the position table in tokens.
    """

    run_dir: str = "runs/base"
    autoencoder: str = "runs/autoencoder/autoencoder.safetensors"
    depth: int = 4
    hidden_size: int = 256
    pos_embed_max_size: int = 64
    data: DataConfig = DataConfig(data=("data/photos",), crop_sizes=(128,))  # noqa: RUF009 (frozen)
    loop: LoopConfig = LoopConfig(steps=700, batch_size=32, lr=1e-3, ema=0.995, save_every=200, validate_every=200)  # noqa: RUF009

    def __post_init__(self):
        _ = self.params  # refuses bad sizes

    @property
    def params(self) -> MMDiTParams:
        """The architecture; text is taken, as hosts want it, but never trained."""
        sizes = {name: getattr(self, name) for name in ("depth", "hidden_size", "pos_embed_max_size")}
        return MMDiTParams(**sizes, context_size=64, pooled_size=64)


def tiny() -> BaseConfig:
    """The embedded default's base."""
    return BaseConfig()


def debug() -> BaseConfig:
    """Seconds on a CPU: proves the path, learns nothing."""
    data = DataConfig(data=("data/photos",), crop_sizes=(64,), held_out=3, num_workers=0)
    loop = LoopConfig(steps=4, batch_size=2, lr=1e-3, warmup=1, save_every=2, log_every=1, validate_every=2)
    return BaseConfig(depth=2, hidden_size=128, pos_embed_max_size=32, data=data, loop=loop)


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


class BaseObjective(nn.Module):
    """From a batch of photos to the velocity's squared error."""

    def __init__(self, base: MMDiT, autoencoder: PatchAutoencoder, seed: int):
        """Join the base with its frozen autoencoder."""
        super().__init__()
        self.base, self.autoencoder, self.seed = base, autoencoder.requires_grad_(False), seed
        self.text = NoText(base.params, EMBEDDED.num_null_tokens)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return "loss" and "sigma", both [B]."""
        device = batch.hr.device
        with torch.no_grad():
            latents = scale_latents(self.autoencoder.encode(batch.hr.float() / 127.5 - 1))
        sigma = torch.cat([sample_sigmas(1, generator(seed, "time"), 1.0) for seed in batch.seeds.tolist()]).to(device)
        noise = sample_noise(latents, batch.seeds)
        positions = random_positions(self.base, latents, generator(sample_seed(self.seed, step), "positions"))
        text = (part.to(device) for part in self.text.read(batch.captions))
        velocity = self.base(add_noise(latents, noise, sigma), timestep(sigma), *text, positions=positions)
        loss = (velocity.float() - velocity_target(latents, noise)).square().mean((1, 2, 3))
        return {"loss": loss, "sigma": sigma}


class BaseTask:
    """A base run as the trainer sees it."""

    name = "base"
    batches_may_leave_parts_unused = True  # text that is always zero moves no weight of the text side
    unsharded = ("autoencoder",)

    def __init__(self, config: BaseConfig):
        """Make the base, ready to pass its input through."""
        torch.manual_seed(config.loop.seed)
        autoencoder = build_autoencoder(read_weights(config.autoencoder), config.autoencoder)
        base = MMDiT(config.params)
        init_base(base)
        self.val_count, self.val_size = VAL_COUNT, config.data.crop_sizes[0]
        self.module = BaseObjective(base, autoencoder, config.loop.seed)

    @torch.no_grad()
    def validate(self, batch: Batch) -> Validation:
        """Return the loss on held-out pictures, with fixed times and noise."""
        return Validation({"loss": self.module(batch, 0)["loss"].mean().item()}, {})

    def export(self, averaged: Mapping[str, Tensor], folder: Path, training: Mapping[str, Any]) -> list[Path]:
        """Write base.safetensors, marked as trained without text."""
        state = averaged_state(self.module.base, averaged, "base.")
        path = folder / "base.safetensors"
        notes = {"kind": "mmdit", NUM_NULL_TOKENS: EMBEDDED.num_null_tokens, **training}
        save_weights(path, state, training=notes)
        return [path]


def main() -> None:
    """Run from the command line."""
    config = parse_config({"tiny": tiny, "debug": debug}, description=__doc__)
    Trainer(BaseTask(config), config.loop, config.data, config.run_dir, dataclasses.asdict(config)).run()


if __name__ == "__main__":
    run_script(main)
