"""Camera-like noise fields for images in [0,1]: Gaussian and Poisson, in colour or grey."""

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)


def gaussian_noise(images: Tensor, sigma: float, channels: int, generator: torch.Generator | None) -> Tensor:
    """Draw noise of `sigma` grey levels of 255; one channel repeats over all colours (grey noise).

    Args:
        images: [B,3,H,W] in [0,1], for shape and device.
        sigma: standard deviation in grey levels.
        channels: 3 for colour noise, 1 for grey noise.
        generator: source of randomness.

    Returns:
        [B,3,H,W], to be added to the images.
    """
    batch, colours, height, width = images.shape
    device = generator.device if generator is not None else images.device
    noise = torch.randn(batch, channels, height, width, generator=generator, device=device)
    return noise.mul_(sigma / 255).to(images).expand(batch, colours, height, width)


def poisson_noise(images: Tensor, scale: float, channels: int, generator: torch.Generator | None) -> Tensor:
    """Draw shot noise, stronger where an image has few distinct levels (Real-ESRGAN's torch form).

    Args:
        images: [B,3,H,W] in [0,1].
        scale: factor on the noise.
        channels: 3 for colour noise, 1 for noise of the luma that all colours share.
        generator: source of randomness, on the images' device.

    Returns:
        [B,3,H,W], to be added to the images.
    """
    source = images
    if channels == 1:
        source = torch.einsum("bchw,c->bhw", images, images.new_tensor(_LUMA))[:, None]
    levels = source.clamp(0, 1).mul_(255).round_()
    present = images.new_zeros(len(images), 256).scatter_(1, levels.flatten(1).long(), 1.0)
    # The next power of two of the number of levels; half a level less keeps the logarithm off its whole numbers.
    photons = (present.sum(dim=1) - 0.5).log2().ceil().clamp(min=0).exp2().view(-1, 1, 1, 1)
    clean = levels.div_(255)
    drawn = torch.poisson(clean * photons, generator=generator)
    return drawn.div_(photons).sub_(clean).mul_(scale).expand_as(images)
