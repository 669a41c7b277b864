"""Tune a trained control and the decoder for few sampling steps: sample as a user would, score the decoded picture.

The sampler starts from the LR latent at `sigma_start` and takes a random number of steps; gradients flow through the
last one. Loss: L1 on pixels and their gradients of the decoded picture, and a perceptual distance (ST-LPIPS, VGG
variant; the AlexNet variant is kept for scoring).

The decoder learns from restored latents and, one batch in four, from those of clean photos, so that it stays one.
Writes control.safetensors and autoencoder.safetensors into the run folder, both averaged.

python -m train.train_few_step tiny --photos FOLDER_OR_TAR ... --start CONTROL --run-dir DIR
"""

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eam_core.checkpoint import save_weights
from eam_core.flow import schedule
from eam_core.model.autoencoder import PatchAutoencoder, unscale_latents
from eam_core.model.control import ControlStream
from eam_core.model.psi_dit import PsiDiT
from eam_core.sampling import initial_latents
from train.loop import LoopConfig, train
from train.metrics import perceptual_metric
from train.options import parse_config, run_script
from train.pairs import PairConfig, Pairs, draw_pairs, gradient_l1, make_pairs, psnr
from train.photos import PhotoCrops
from train.prefetch import prefetch
from train.train_base import random_positions
from train.train_control import ControlConfig, denoise_once, load_models


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewStepConfig(ControlConfig):
    """A control run whose input is what the sampler itself makes.

    Args:
        sigma_start: noise level at which the sampler starts from the LR latent.
        num_steps: numbers of sampling steps to draw from.
        perceptual_weight: of the perceptual distance, beside an L1 of weight 1.
    """

    sigma_start: float = 0.7
    num_steps: tuple[int, ...] = (1, 2)
    perceptual_weight: float = 0.7


def tiny() -> FewStepConfig:
    """The last stage of the embedded default."""
    loop = LoopConfig(steps=700, batch_size=5, lr=4e-4, ema=0.99, save_every=100)
    return FewStepConfig(pairs=PairConfig(crop_sizes=(128,)), run_dir="runs/few_step", loop=loop)


def debug() -> FewStepConfig:
    """Seconds on a CPU: proves the path, learns nothing."""
    loop = LoopConfig(steps=2, batch_size=1, lr=1e-4, save_every=2)
    return FewStepConfig(pairs=PairConfig(crop_sizes=(64,)), held_out=1, perceptual_weight=0.0, loop=loop)


class Tuned(nn.Module):
    """What this stage trains: the control and the autoencoder's decoder."""

    def __init__(self, control: ControlStream, autoencoder: PatchAutoencoder):
        super().__init__()
        self.control, self.autoencoder = control, autoencoder


def sample(
    model: PsiDiT, pairs: Pairs, num_steps: int, sigma_start: float, noise: Tensor, positions: Tensor | None
) -> Tensor:
    """Run Euler steps from the LR latent; only the last step keeps its graph. Returns denoised latents [B, C, H, W]."""
    x = initial_latents(noise, pairs.lr_latents, sigma_start)
    sigmas = schedule(num_steps, 1.0, sigma_start)
    for index in range(num_steps):
        sigma = sigmas[index].expand(len(x))
        with torch.set_grad_enabled(torch.is_grad_enabled() and index == num_steps - 1):
            denoised = denoise_once(model, x, sigma, pairs.lr_latents, positions)
        x = denoised + sigmas[index + 1] / sigmas[index] * (x - denoised)
    return x


def main() -> None:
    """Run from the command line."""
    config = parse_config({"tiny": tiny, "debug": debug}, description=__doc__)
    sources = [Path(source) for source in config.photos]
    crops = PhotoCrops(sources, held_out=config.held_out)
    torch.manual_seed(config.loop.seed)
    autoencoder, model = load_models(config)
    autoencoder.decoder.requires_grad_(True)
    tuned = Tuned(model.control, autoencoder)
    distance = perceptual_metric("stlpips-vgg") if config.perceptual_weight else None

    batches = prefetch(
        lambda generator: draw_pairs(crops, config.pairs, config.loop.batch_size, autoencoder, generator),
        config.loop.seed,
    )

    def loss_fn(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pairs = next(batches)
        num_steps = config.num_steps[int(torch.randint(len(config.num_steps), (), generator=generator))]
        noise = torch.randn(pairs.hr_latents.shape, generator=generator)
        positions = random_positions(model.base, pairs.hr_latents, generator)
        if step % 4:
            latents = sample(model, pairs, num_steps, config.sigma_start, noise, positions)
        else:
            latents = pairs.hr_latents
        picture = autoencoder.decode(unscale_latents(latents))
        target = pairs.hr * 2 - 1
        pixel, gradient = F.l1_loss(picture, target), gradient_l1(picture, target)
        losses = {"l1": pixel, "gradient_l1": gradient}
        loss = pixel + gradient
        if distance:
            losses["perceptual"] = distance(picture.clamp(-1, 1) / 2 + 0.5, pairs.hr).mean()
            loss = loss + config.perceptual_weight * losses["perceptual"]
        return {"loss": loss, **{name: value.detach() for name, value in losses.items()}}

    run_dir = Path(config.run_dir)
    metadata = dataclasses.asdict(config)
    unseen = PhotoCrops(sources, held_out=config.held_out, split="held_out")
    fixed = torch.Generator().manual_seed(1)
    hr = unseen.sample(12, config.pairs.crop_sizes[0], fixed)
    validation = {
        preset: make_pairs(hr, preset, config.pairs.scale, autoencoder, fixed) for preset in config.pairs.presets
    }
    score = perceptual_metric("stlpips") if config.perceptual_weight else None

    @torch.no_grad()
    def validate(average: Tuned) -> dict[str, float]:
        """Save both parts; sample with the most steps: PSNR and ST-LPIPS (AlexNet) per degradation."""
        for name, part in (("control", average.control), ("autoencoder", average.autoencoder)):
            save_weights(run_dir / f"{name}.safetensors", part.state_dict(), training={**metadata, "kind": name})
        averaged = PsiDiT(model.base, average.control)
        scores = {}
        for preset, pairs in validation.items():
            noise = torch.randn(pairs.hr_latents.shape, generator=fixed.manual_seed(2))
            latents = sample(averaged, pairs, max(config.num_steps), config.sigma_start, noise, None)
            picture = average.autoencoder.decode(unscale_latents(latents)).clamp(-1, 1)
            scores[f"psnr_{preset}"] = psnr(picture, hr * 2 - 1)
            if score:
                scores[f"stlpips_{preset}"] = score(picture / 2 + 0.5, hr).mean().item()
        return scores

    train(tuned, loss_fn, config.loop, path=run_dir / "few_step.safetensors", metadata=metadata, validate=validate)


if __name__ == "__main__":
    run_script(main)
