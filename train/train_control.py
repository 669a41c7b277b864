"""Train a control stream on a frozen base: restore photos from degraded ones, with TALA.

The loss is taken on the denoised latents after the linear part of the decoder: L1 on pixels and on their gradients.

python -m train.train_control tiny --photos FOLDER_OR_TAR ... --autoencoder FILE --base FILE --run-dir DIR
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from eam_core.checkpoint import build_autoencoder, build_control, build_mmdit, check_pair, read_weights
from eam_core.flow import add_noise, denoised_from_velocity, timestep
from eam_core.model.autoencoder import PatchAutoencoder
from eam_core.model.control import ControlParams, ControlStream, LRAttention
from eam_core.model.control_init import LRInit, init_control
from eam_core.model.psi_dit import PsiDiT
from eam_core.tala import substitute_lr
from train.local_head import add_local_head
from train.loop import LoopConfig, train
from train.options import parse_config, run_script
from train.pairs import PairConfig, draw_pairs, linear_picture, make_pairs, picture_losses, psnr
from train.photos import PhotoCrops
from train.prefetch import prefetch
from train.train_base import null_text, random_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """One run.

    Args:
        photos, held_out: folders or tars of pictures, and how many are kept for validation.
        autoencoder, base, start: weight files; `start` continues from control weights instead of copying the base.
        pairs: how training pairs are made.
        local_heads: 1 gives every SSCM a head that starts by reading the LR token at its own place; 0: as the paper.
        sigma_max: training times are uniform up to it; a sampler should not start above it.
        tala_exponent: p(sigma) = sigma ** exponent of starting from the LR latent.
    """

    photos: tuple[str, ...] = ("data",)
    held_out: int = 24
    autoencoder: str = "runs/autoencoder/autoencoder.safetensors"
    base: str = "runs/base/base.safetensors"
    start: str = ""
    run_dir: str = "runs/control"
    pairs: PairConfig = PairConfig()  # noqa: RUF009 (frozen)
    lr_attention: LRAttention = "joint"
    lr_init: LRInit = "noisy"
    local_heads: int = 1
    sigma_max: float = 1.0
    tala_exponent: float = 1.0
    loop: LoopConfig = LoopConfig(steps=1700, batch_size=16, lr=1e-3, ema=0.998)  # noqa: RUF009 (frozen)

    def __post_init__(self):
        if self.local_heads not in (0, 1):
            raise ValueError(f"expected local_heads 0 or 1, got {self.local_heads}")
        if self.local_heads and self.lr_attention != "joint":
            raise ValueError(f"expected local_heads 0 with lr_attention {self.lr_attention!r}, got {self.local_heads}")


def tiny() -> ControlConfig:
    """The embedded default's control."""
    return ControlConfig()


def debug() -> ControlConfig:
    """Seconds on a CPU: proves the path, learns nothing."""
    loop = LoopConfig(steps=4, batch_size=2, lr=1e-3, save_every=2)
    return ControlConfig(pairs=PairConfig(crop_sizes=(64,)), held_out=1, loop=loop)


def load_models(config: ControlConfig) -> tuple[PatchAutoencoder, PsiDiT]:
    """Build the frozen autoencoder and base and a control stream, copied from the base or continued."""
    autoencoder = build_autoencoder(read_weights(config.autoencoder), config.autoencoder).requires_grad_(False)
    base = build_mmdit(read_weights(config.base), config.base).float()
    if config.start:
        control = build_control(read_weights(config.start), config.start).float()
        check_pair(base.params, control.params, config.start)
    else:
        shared = {name: getattr(base.params, name) for name in ("depth", "hidden_size", "in_channels", "qk_norm")}
        control = ControlStream(ControlParams(**shared, lr_attention=config.lr_attention))
        init_control(control, base.state_dict(), lr_init=config.lr_init)
        if config.local_heads:
            add_local_head(control, base, *null_text(base.params, 1))
    return autoencoder, PsiDiT(base, control)


def denoise_once(model: PsiDiT, x: Tensor, sigma: Tensor, lr_latents: Tensor, positions: Tensor | None) -> Tensor:
    """Predict the denoised latents from noisy ones at sigma [B], without text."""
    text = null_text(model.base.params, len(x))
    velocity = model(x, timestep(sigma), *text, lr_latents, positions=positions)
    return denoised_from_velocity(x, velocity, sigma)


def main() -> None:
    """Run from the command line."""
    config = parse_config({"tiny": tiny, "debug": debug}, description=__doc__)
    sources = [Path(source) for source in config.photos]
    crops = PhotoCrops(sources, held_out=config.held_out)
    torch.manual_seed(config.loop.seed)
    autoencoder, model = load_models(config)

    batches = prefetch(
        lambda generator: draw_pairs(crops, config.pairs, config.loop.batch_size, autoencoder, generator),
        config.loop.seed,
    )

    def loss_fn(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pairs = next(batches)
        sigma = torch.rand(len(pairs.hr), generator=generator) * config.sigma_max
        noise = torch.randn(pairs.hr_latents.shape, generator=generator)
        start = substitute_lr(pairs.hr_latents, pairs.lr_latents, sigma, config.tala_exponent, generator)
        positions = random_positions(model.base, pairs.hr_latents, generator)
        denoised = denoise_once(model, add_noise(start, noise, sigma), sigma, pairs.lr_latents, positions)
        return picture_losses(denoised, pairs, autoencoder)

    unseen = PhotoCrops(sources, held_out=config.held_out, split="held_out")
    fixed = torch.Generator().manual_seed(1)
    hr = unseen.sample(16, 128, fixed)
    validation = {
        preset: make_pairs(hr, preset, config.pairs.scale, autoencoder, fixed) for preset in config.pairs.presets
    }

    @torch.no_grad()
    def validate(control: ControlStream) -> dict[str, float]:
        """One step from the LR latent at sigma 0.6: PSNR of the linear decoding, per degradation."""
        averaged = PsiDiT(model.base, control)
        sigma = torch.full((len(hr),), 0.6)
        scores = {}
        for preset, pairs in validation.items():
            noise = torch.randn(hr.shape[0], 16, *pairs.hr_latents.shape[2:], generator=fixed.manual_seed(2))
            x = add_noise(pairs.lr_latents, noise, sigma)
            denoised = denoise_once(averaged, x, sigma, pairs.lr_latents, None)
            scores[f"psnr_{preset}"] = psnr(linear_picture(denoised, autoencoder), hr * 2 - 1)
        return scores

    train(
        model.control,
        loss_fn,
        config.loop,
        path=Path(config.run_dir) / "control.safetensors",
        metadata={
            "kind": "control",
            **{key: value for key, value in dataclasses.asdict(config).items() if key != "loop"},
        },
        validate=validate,
    )


if __name__ == "__main__":
    run_script(main)
