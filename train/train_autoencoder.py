"""Train the embedded default's autoencoder: a lapped linear transform first, then the decoder's residual network.

The transform starts as principal components and fixes the latents, so that the base can be trained on them while the
decoder still improves. Loss of both phases: L1 on pixels and on their gradients.

python -m train.train_autoencoder tiny --photos FOLDER_OR_TAR ... --run-dir DIR
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from eam_core.checkpoint import build_autoencoder, read_weights
from eam_core.model.autoencoder import PATCH, AutoencoderParams, PatchAutoencoder
from train.loop import LoopConfig, train
from train.options import parse_config, run_script
from train.pairs import gradient_l1, psnr
from train.photos import PhotoCrops


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """One run: `photos` are folders or tars, `held_out` photos are kept for validation, `crop_size` in pixels.

    `start` continues from a file whose linear transform is trained already: only the decoder is trained then.
    """

    photos: tuple[str, ...] = ("data",)
    run_dir: str = "runs/autoencoder"
    held_out: int = 24
    crop_size: int = 128
    gradient_weight: float = 1.0
    start: str = ""
    params: AutoencoderParams = dataclasses.field(default_factory=AutoencoderParams)
    linear_steps: int = 350
    linear_lr: float = 2e-3
    loop: LoopConfig = LoopConfig(steps=800, batch_size=8, lr=1e-3, ema=0.995)  # noqa: RUF009 (frozen)


def tiny() -> AutoencoderConfig:
    """The embedded default's autoencoder."""
    return AutoencoderConfig()


def debug() -> AutoencoderConfig:
    """Seconds on a CPU: proves the path, learns nothing."""
    params = AutoencoderParams(coarse_width=8, coarse_blocks=1, fine_width=8, fine_blocks=1)
    loop = LoopConfig(steps=4, batch_size=2, lr=1e-3, save_every=2)
    return AutoencoderConfig(params=params, loop=loop, crop_size=64, held_out=1, linear_steps=4)


def main() -> None:
    """Run from the command line."""
    config = parse_config({"tiny": tiny, "debug": debug}, description=__doc__)
    sources = [Path(source) for source in config.photos]
    crops = PhotoCrops(sources, held_out=config.held_out)
    held_out = PhotoCrops(sources, held_out=config.held_out, split="held_out")
    torch.manual_seed(config.loop.seed)
    generator = torch.Generator().manual_seed(config.loop.seed)
    model = PatchAutoencoder(config.params).to(memory_format=torch.channels_last)
    if config.start:
        model = build_autoencoder(read_weights(config.start), config.start).to(memory_format=torch.channels_last)
    else:
        patches = F.unfold(crops.sample(400, config.crop_size, generator) * 2 - 1, PATCH, stride=PATCH)
        model.init_from_patches(patches.permute(0, 2, 1).reshape(-1, 3, PATCH, PATCH))
    unseen = held_out.sample(48, config.crop_size, generator) * 2 - 1

    def loss_fn(decode: Callable[[Tensor], Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        images = crops.sample(config.loop.batch_size, config.crop_size, generator) * 2 - 1
        output = decode(model.encode(images))
        pixel, gradient = F.l1_loss(output, images), gradient_l1(output, images)
        return {"loss": pixel + config.gradient_weight * gradient, "l1": pixel, "gradient_l1": gradient}

    @torch.no_grad()
    def validate(average: PatchAutoencoder) -> dict[str, float]:
        raw = average.encode(unseen)
        return {
            "psnr": psnr(average.decode(raw), unseen),
            "psnr_linear": psnr(average.decoder.synthesize(raw), unseen),
        }

    print(f"PSNR of the principal components alone: {validate(model)['psnr_linear']:.2f} dB")
    run_dir = Path(config.run_dir)
    phases = (
        (
            "linear",
            model.decoder.synthesize,
            dataclasses.replace(config.loop, steps=config.linear_steps, lr=config.linear_lr),
        ),
        ("autoencoder", model.decode, config.loop),
    )
    for name, decode, loop in phases[1 if config.start else 0 :]:
        model.encoder.requires_grad_(name == "linear")
        average = train(
            model,
            lambda step, generator, decode=decode: loss_fn(decode, generator),
            loop,
            path=run_dir / f"{name}.safetensors",
            metadata={"kind": "autoencoder", "phase": name},
            validate=validate,
        )
        model.load_state_dict(average.state_dict())


if __name__ == "__main__":
    run_script(main)
