"""Training pairs of photos and their degraded copies, and how a restored picture is compared with its photo."""

import dataclasses

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from eam_core.degradation import PRESETS, degrade
from eam_core.images import resize
from eam_core.model.autoencoder import Autoencoder, PatchAutoencoder, scale_latents, unscale_latents
from train.seeding import generator

TOKEN, WINDOW = 16, 112  # pixels of one token, and of the windows in which `grid_strength` looks for what repeats


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How photos are degraded.

    Args:
        scale: reduction factor of the LR pictures, a whole number from 2 to 8.
        presets: degradations to choose from, sample by sample.
        preset_weights: how often each preset is drawn.
    """

    scale: int = 4
    presets: tuple[str, ...] = ("plain", "light", "stock")
    preset_weights: tuple[float, ...] = (0.4, 0.45, 0.15)

    def __post_init__(self):
        if not 2 <= self.scale <= 8:
            raise ValueError(f"expected a scale from 2 to 8, got {self.scale}")
        if len(self.presets) != len(self.preset_weights) or not self.presets:
            raise ValueError(f"expected one weight per preset {self.presets}, got {self.preset_weights}")
        if min(self.preset_weights) < 0 or not sum(self.preset_weights):
            raise ValueError(f"expected preset_weights of at least 0, not all 0, got {self.preset_weights}")
        for preset in self.presets:
            if preset not in PRESETS:
                raise ValueError(f"expected presets among {sorted(PRESETS)}, got {preset!r}")


# What the embedded default learns from: damaged pictures are harder than reduced ones, so there are more of them.
TINY_PAIRS = PairConfig(preset_weights=(0.3, 0.3, 0.4))


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A batch: HR pictures [B, 3, H, W] in [0, 1], LR ones [B, 3, h, w], and both sides' latents for the network."""

    hr: Tensor
    lr: Tensor
    hr_latents: Tensor
    lr_latents: Tensor


@torch.no_grad()
def degrade_each(hr: Tensor, seeds: Tensor, config: PairConfig) -> Tensor:
    """Degrade HR pictures [B, 3, H, W] in [0, 1], each by a preset and parameters from its own seed."""
    weights = torch.tensor(config.preset_weights)
    names = [
        config.presets[int(torch.multinomial(weights, 1, generator=generator(seed, "preset")))]
        for seed in seeds.tolist()
    ]
    return degrade(hr, config.scale, [PRESETS[name] for name in names], seeds.tolist())


@torch.no_grad()
def make_pairs(hr: Tensor, seeds: Tensor, config: PairConfig, autoencoder: Autoencoder) -> Pairs:
    """Degrade HR pictures [B, 3, H, W], each by its own seed; enlarge the result to their size again; encode both."""
    return encode_pairs(hr, degrade_each(hr, seeds, config), autoencoder)


@torch.no_grad()
def encode_pairs(hr: Tensor, lr: Tensor, autoencoder: Autoencoder) -> Pairs:
    """Enlarge LR pictures [B, 3, h, w] to the size of their originals [B, 3, H, W]; encode both."""
    enlarged = resize(lr, (hr.shape[-2], hr.shape[-1]))
    raw = autoencoder.encode(hr * 2 - 1), autoencoder.encode_degraded(enlarged * 2 - 1)
    hr_latents, lr_latents = (scale_latents(latents.float()) for latents in raw)
    return Pairs(hr, lr, hr_latents, lr_latents)


def gradient_l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference [B] of horizontal and vertical pixel differences of two batches [B, 3, H, W]."""
    difference = output - target
    return difference.diff(dim=-1).abs().mean((1, 2, 3)) + difference.diff(dim=-2).abs().mean((1, 2, 3))


def pixel_l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference [B] of two batches [B, 3, H, W]."""
    return (output - target).abs().mean((1, 2, 3))


def grid_strength(output: Tensor) -> Tensor:
    """Measure how much of the fine detail keeps to the 16 x 16 places of a token.

    In photos no place is special, and this is small. A network that works on tokens puts detail where it finds that
    easiest, which shows as a regular grid. Two parts, both relative to the mean |Laplacian|: the squared deviation of
    single places from it, and the mean square of the pattern that the tokens of one window share.

    Args:
        output: decoded pictures [B, 3, H, W], at least 114 pixels a side; for the first part the batch counts together.

    Returns:
        One number, of no unit: 0.07 to 0.09 for the test photos.
    """
    around = output[..., :-2, 1:-1] + output[..., 2:, 1:-1] + output[..., 1:-1, :-2] + output[..., 1:-1, 2:]
    detail = around - 4 * output[..., 1:-1, 1:-1]
    height, width = (side // WINDOW * WINDOW for side in detail.shape[-2:])
    detail = detail[..., :height, :width]
    mean = detail.abs().mean()
    places = reduce(detail.abs(), "b c (h p) (w q) -> p q", "mean", p=TOKEN, q=TOKEN)
    sizes = {"h": WINDOW // TOKEN, "w": WINDOW // TOKEN, "p": TOKEN, "q": TOKEN}
    shared = reduce(detail, "b c (y h p) (x w q) -> b c y x p q", "mean", **sizes)
    return (places / mean - 1).square().mean() + (shared / mean).square().mean()


def psnr(output: Tensor, target: Tensor) -> float:
    """PSNR in dB of two batches in [-1, 1], clamped."""
    return (10 * torch.log10(4 / F.mse_loss(output.clamp(-1, 1), target))).item()


def linear_picture(latents: Tensor, autoencoder: PatchAutoencoder) -> Tensor:
    """Decode latents with the linear part of the decoder: pictures [B, 3, 8H, 8W], cheap enough for every step."""
    return autoencoder.decoder.synthesize(unscale_latents(latents))
