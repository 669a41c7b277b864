"""The embedded default's small autoencoder (16 channels, 1/8 size) and SD3's latent scaling.

The encoder is one lapped linear transform: it starts as the 16 leading principal components of 8 x 8 patches. The
decoder is its transpose plus a residual network that works at 1/8 and 1/4 size, about ten times cheaper than
convolutions at full size, and a few narrow ones at full size that hide where patches meet. Degraded pictures are
encoded by the same transform and cleaned as latents, for the purpose of SUPIR's degradation-robust encoder: noise, blur
and compression are gone before the transformer starts. SD3's own autoencoder is not rewritten here: hosts bring theirs,
the command line takes diffusers'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SD3_SCALE, SD3_SHIFT = 1.5305, 0.0609
DOWNSCALE = 8
PATCH = 8
EDGE_LIMIT = 0.4  # of 2; a jump between patches that is larger belongs to the picture
LAP = 4  # pixels that each 8 x 8 patch sees of its neighbours
DETAIL = 8  # channels that the reduced sizes hand to the full one


def scale_latents(raw: Tensor, shift: float = SD3_SHIFT) -> Tensor:
    """Turn an SD3 autoencoder's raw latents into what the network takes: (raw - 0.0609) * 1.5305."""
    return (raw - shift) * SD3_SCALE


def unscale_latents(latents: Tensor, shift: float = SD3_SHIFT) -> Tensor:
    """Undo `scale_latents`."""
    return latents / SD3_SCALE + shift


class Autoencoder(Protocol):
    """What sampling needs of an autoencoder: images [B, 3, H, W] in [-1, 1], raw latents [B, C, H / 8, W / 8]."""

    def encode(self, images: Tensor) -> Tensor: ...

    def encode_degraded(self, images: Tensor) -> Tensor: ...

    def decode(self, raw: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class AutoencoderParams:
    """Widths and block counts of the decoder at 1/8 size (`coarse`), 1/4 (`fine`) and 1 (`full`), and the cleaner."""

    latent_channels: int = 16
    coarse_width: int = 160
    coarse_blocks: int = 4
    fine_width: int = 64
    fine_blocks: int = 2
    full_width: int = 24
    clean_width: int = 96
    clean_blocks: int = 10

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "AutoencoderParams":
        """Read every size from the keys and shapes of a state dict."""
        return cls(
            latent_channels=state["encoder.weight"].shape[0],
            coarse_width=state["decoder.enter.weight"].shape[0],
            coarse_blocks=_count_blocks(state, "decoder.coarse."),
            fine_width=state["decoder.leave.weight"].shape[1],
            fine_blocks=_count_blocks(state, "decoder.fine."),
            full_width=state["decoder.finish.weight"].shape[1],
            clean_width=state["cleaner.enter.weight"].shape[0],
            clean_blocks=_count_blocks(state, "cleaner.blocks."),
        )


def _count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return sum(key.startswith(prefix) and key.endswith("conv1.weight") for key in state)


def _convolvable(x: Tensor) -> Tensor:
    """Lay [B, C, H, W] out in memory as convolutions like it: on a CPU with channels side by side, a fifth faster."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def soften_patch_borders(picture: Tensor) -> Tensor:
    """Take the small jumps between neighbouring 8 x 8 patches out of a decoded picture [B, 3, H, W] in [-1, 1].

    A jump that exceeds the steps on both its sides is spread over two pixels each, as the deblocking filters of video
    codecs do; jumps towards `EDGE_LIMIT` and beyond are real edges and stay.
    """
    for _ in range(2):  # columns, then rows
        picture = picture.clone()
        border = torch.arange(PATCH, picture.shape[-1], PATCH, device=picture.device)
        before, after = picture[..., border - 1], picture[..., border]
        slope = (before - picture[..., border - 2] + picture[..., border + 1] - after) / 2
        jump = 0.8 * (after - before - slope)
        jump = jump.sign() * torch.minimum(jump.abs(), (2 * EDGE_LIMIT - jump.abs()).clamp(min=0))
        for distance, share in enumerate((0.4, 0.2)):
            picture[..., border - 1 - distance] += share * jump
            picture[..., border + distance] -= share * jump
        picture = picture.mT
    return picture


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a SiLU, added to the input; the second starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Decoder(nn.Module):
    """Lapped linear synthesis, plus a residual picture from convolutions at reduced size, plus one at full size."""

    def __init__(self, params: AutoencoderParams):
        super().__init__()
        coarse, fine, full = params.coarse_width, params.fine_width, params.full_width
        self.linear = nn.ConvTranspose2d(params.latent_channels, 3, PATCH + 2 * LAP, stride=PATCH, padding=LAP)
        self.enter = nn.Conv2d(params.latent_channels, coarse, 3, padding=1, padding_mode="replicate")
        self.coarse = nn.Sequential(*(ResidualBlock(coarse) for _ in range(params.coarse_blocks)))
        self.widen = nn.Conv2d(coarse, 4 * fine, 3, padding=1, padding_mode="replicate")
        self.fine = nn.Sequential(*(ResidualBlock(fine) for _ in range(params.fine_blocks)))
        self.leave = nn.Conv2d(fine, 3 * 16, 3, padding=1, padding_mode="replicate")
        self.spread = nn.Conv2d(fine, DETAIL * 16, 3, padding=1, padding_mode="replicate")
        self.mix1 = nn.Conv2d(3 + DETAIL, full, 3, padding=1, padding_mode="replicate")
        self.mix2 = nn.Conv2d(full, full, 3, padding=1, padding_mode="replicate")
        self.finish = nn.Conv2d(full, 3, 3, padding=1, padding_mode="replicate")
        for parameter in (*self.leave.parameters(), *self.finish.parameters()):
            nn.init.zeros_(parameter)

    def synthesize(self, raw: Tensor) -> Tensor:
        """Return the linear part alone [B, 3, 8H, 8W]; latents beyond the border repeat the outermost ones."""
        picture = self.linear(F.pad(raw, (1, 1, 1, 1), mode="replicate"))
        return picture[..., PATCH:-PATCH, PATCH:-PATCH]

    def forward(self, raw: Tensor) -> Tensor:
        x = self.widen(self.coarse(self.enter(raw)))
        x = self.fine(F.pixel_shuffle(x, 2))
        picture = soften_patch_borders(self.synthesize(raw) + F.pixel_shuffle(self.leave(x), 4))
        x = torch.cat([picture, F.pixel_shuffle(self.spread(x), 4)], dim=1)
        return picture + self.finish(F.silu(self.mix2(F.silu(self.mix1(x)))))


class Cleaner(nn.Module):
    """What degradation did to latents [B, C, h, w], taken out again by convolutions at 1/8 size; starts as identity."""

    def __init__(self, params: AutoencoderParams):
        super().__init__()
        width = params.clean_width
        self.enter = nn.Conv2d(params.latent_channels, width, 3, padding=1, padding_mode="replicate")
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(params.clean_blocks)))
        self.leave = nn.Conv2d(width, params.latent_channels, 3, padding=1, padding_mode="replicate")
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, raw: Tensor) -> Tensor:
        return raw + self.leave(self.blocks(self.enter(raw)))


class PatchAutoencoder(nn.Module):
    """Encode pictures linearly and decode them with a residual network; deterministic, no sampling."""

    tile_overlap = 48
    """Pixels; tiles that share as many give the whole picture within one grey level of 255, half of that mostly."""
    decode_tile = 512
    """Pixels; larger tiles are decoded no faster, as what lies between two layers leaves a CPU's cache."""

    def __init__(self, params: AutoencoderParams = AutoencoderParams()):
        super().__init__()
        self.params = params
        self.encoder = nn.Conv2d(
            3, params.latent_channels, PATCH + 2 * LAP, stride=PATCH, padding=LAP, padding_mode="replicate"
        )
        self.decoder, self.cleaner = Decoder(params), Cleaner(params)

    def encode(self, images: Tensor) -> Tensor:
        """Return raw latents [B, 16, H / 8, W / 8] of images [B, 3, H, W] in [-1, 1], sides multiples of 8."""
        return self.encoder(images)

    def encode_degraded(self, images: Tensor) -> Tensor:
        """Return raw latents of what degraded images show, cleaned; sizes as in `encode`."""
        return self.cleaner(_convolvable(self.encoder(images))).contiguous()

    def decode(self, raw: Tensor) -> Tensor:
        """Return images [B, 3, 8H, 8W], about in [-1, 1], from raw latents."""
        return self.decoder(_convolvable(raw))

    @torch.no_grad()
    def init_from_patches(self, patches: Tensor) -> None:
        """Start as the principal components of 8 x 8 patches, half whitened.

        A component of standard deviation s gets latents of deviation proportional to sqrt(s), of unit variance on
        average: noise then hides fine detail before it hides brightness, and a small error of the network in the
        brightness is a small error of the picture.

        Args:
            patches: [N, 3, 8, 8] in [-1, 1], N of several thousands.
        """
        flat = patches.flatten(1).double()
        mean = flat.mean(dim=0)
        variance, directions = torch.linalg.eigh(torch.cov((flat - mean).T))
        channels = self.params.latent_channels
        directions, std = directions[:, -channels:].flip(1), variance[-channels:].flip(0).sqrt()
        gain = std.rsqrt() / std.mean().sqrt()  # scaled latents have variance gain^2 std^2, one on average
        analysis = (directions * gain).T / SD3_SCALE  # raw = scaled / 1.5305 + 0.0609
        synthesis = (directions / gain).T * SD3_SCALE
        inner = slice(LAP, LAP + PATCH)
        nn.init.zeros_(self.encoder.weight)
        nn.init.zeros_(self.decoder.linear.weight)
        self.encoder.weight[:, :, inner, inner] = analysis.reshape(channels, 3, PATCH, PATCH).float()
        self.encoder.bias.copy_(SD3_SHIFT - analysis @ mean)  # type: ignore[union-attr]
        self.decoder.linear.weight[:, :, inner, inner] = synthesis.reshape(channels, 3, PATCH, PATCH).float()
        # A lapped synthesis has one bias per colour, not per pixel of the patch: the mean patch is flat anyway.
        colour_mean = (mean - SD3_SHIFT * synthesis.sum(0)).reshape(3, -1).mean(1)
        self.decoder.linear.bias.copy_(colour_mean)  # type: ignore[union-attr]
