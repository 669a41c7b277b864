"""The embedded default's autoencoder: sizes, its start as principal components, and borders like the middle."""

import pytest
import torch
import torch.nn.functional as F

from eam_core.model.autoencoder import (
    AutoencoderParams,
    PatchAutoencoder,
    scale_latents,
    soften_patch_borders,
    unscale_latents,
)

TINY = AutoencoderParams(coarse_width=8, coarse_blocks=1, fine_width=8, fine_blocks=1, clean_width=8, clean_blocks=1)


def pictures(num: int = 12, side: int = 96, seed: int = 0) -> torch.Tensor:
    """Draw pictures [num, 3, side, side] in [-1, 1] whose detail falls off with frequency as in photos."""
    generator = torch.Generator().manual_seed(seed)
    frequency = (torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.rfftfreq(side) ** 2).sqrt().clamp_min(1 / side)
    noise = torch.fft.rfft2(torch.randn(num, 3, side, side, generator=generator)) / frequency**1.5
    texture = torch.fft.irfft2(noise, s=(side, side))
    texture[:, 1:] = 0.3 * texture[:, 1:] + 0.7 * texture[:, :1]  # colours go together
    return (0.3 * texture / texture.std() + torch.tensor([0.2, 0.0, -0.1]).view(3, 1, 1)).clamp(-1, 1)


def patches_of(images: torch.Tensor) -> torch.Tensor:
    return F.unfold(images, 8, stride=8).permute(0, 2, 1).reshape(-1, 3, 8, 8)


@pytest.fixture(scope="module")
def fitted() -> PatchAutoencoder:
    torch.manual_seed(0)
    model = PatchAutoencoder(TINY)
    model.init_from_patches(patches_of(pictures()))
    return model.eval().requires_grad_(False)


def randomized() -> PatchAutoencoder:
    torch.manual_seed(0)
    model = PatchAutoencoder(TINY)
    for tensor in model.state_dict().values():
        tensor.normal_(std=0.1)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (16, 104), (72, 8)])
@pytest.mark.parametrize("channels", [4, 16])
def test_latents_are_an_eighth_and_pictures_come_back_whole(size, channels):
    model = PatchAutoencoder(AutoencoderParams(latent_channels=channels, coarse_width=8, fine_width=8))
    images = torch.zeros(2, 3, *size)
    raw = model.encode(images)
    assert raw.shape == (2, channels, size[0] // 8, size[1] // 8)
    assert model.decode(raw).shape == images.shape


def test_a_new_cleaner_changes_nothing_and_a_trained_one_only_degraded_pictures(fitted):
    images = pictures(2)
    assert torch.equal(fitted.encode_degraded(images), fitted.encode(images))
    model = randomized()
    assert model.encode_degraded(images).shape == model.encode(images).shape
    assert not torch.allclose(model.encode_degraded(images), model.encode(images), atol=0.1)


def test_latents_of_the_fitted_patches_are_half_whitened(fitted):
    latents = scale_latents(fitted.encode(pictures())).permute(1, 0, 2, 3).flatten(1)
    covariance = torch.cov(latents)
    variance = covariance.diagonal()
    torch.testing.assert_close(latents.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(covariance, torch.diag(variance), atol=2e-2, rtol=0)
    torch.testing.assert_close(variance.mean(), torch.ones(()), atol=1e-2, rtol=0)
    # Latents of deviation sqrt(s) decoded by vectors of length sqrt(s) give components of deviation s.
    length = fitted.decoder.linear.weight.square().sum((1, 2, 3))
    torch.testing.assert_close(variance / variance.mean(), length / length.mean(), atol=0, rtol=5e-2)


def test_leading_component_comes_first(fitted):
    energy = fitted.decoder.linear.weight.square().sum((1, 2, 3))
    assert (energy.diff() <= 0).all()
    assert energy[0] > 3 * energy[15]


def test_start_reconstructs_unseen_pictures_as_well_as_any_16_directions_can(fitted):
    images = pictures(seed=1)
    error = F.mse_loss(fitted.decode(fitted.encode(images)), images)
    assert error < 0.1 * images.var()
    _, values, _ = torch.linalg.svd(patches_of(images).flatten(1) - patches_of(images).flatten(1).mean(0))
    best = values[16:].square().sum() / images.numel()
    assert best < error < 1.2 * best


def test_residual_network_adds_nothing_at_first_but_learns(fitted):
    raw = torch.randn(1, 16, 4, 5)
    assert torch.equal(fitted.decode(raw), soften_patch_borders(fitted.decoder.synthesize(raw)))
    model = PatchAutoencoder(TINY)
    model.decode(raw).square().mean().backward()
    assert model.decoder.leave.weight.grad.any() and model.decoder.finish.weight.grad.any()


@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
def test_even_latents_give_even_blocks_up_to_the_border(size):
    raw = torch.randn(1, 16, 1, 1, generator=torch.Generator().manual_seed(0)).expand(1, 16, *size)
    blocks = patches_of(randomized().decoder.synthesize(raw))
    torch.testing.assert_close(blocks, blocks[:1].expand_as(blocks), atol=1e-5, rtol=0)


def test_an_even_picture_gives_even_latents_up_to_the_border():
    raw = randomized().encode(torch.tensor([0.9, -0.2, 0.4]).view(1, 3, 1, 1).expand(1, 3, 24, 40))
    torch.testing.assert_close(raw, raw[..., :1, :1].expand_as(raw), atol=1e-5, rtol=0)


def test_scaling_is_sd3s_and_has_its_inverse():
    raw = torch.tensor([0.0609, 1.0609, -3.0])
    torch.testing.assert_close(scale_latents(raw)[:2], torch.tensor([0.0, 1.5305]))
    torch.testing.assert_close(unscale_latents(scale_latents(raw)), raw)


def test_patch_borders_lose_small_jumps_and_keep_edges_and_slopes():
    picture = torch.zeros(1, 3, 8, 32)
    picture[..., 8:] += 0.1  # a patch that is a little brighter than its neighbour
    picture[..., 24:] += 1.5  # an edge of the picture itself
    softened = soften_patch_borders(picture)
    steps = softened[0, 0, 0].diff()
    assert steps[7] == pytest.approx(0.036, abs=1e-6)
    assert steps.sum() == pytest.approx(1.6, abs=1e-5)
    assert steps[23] == pytest.approx(1.5, abs=1e-5)
    slope = torch.linspace(-1, 1, 32).expand(1, 3, 16, 32)
    torch.testing.assert_close(soften_patch_borders(slope), slope)
    assert torch.equal(soften_patch_borders(picture.mT), softened.mT)


def test_how_pictures_lie_in_memory_changes_nothing(fitted: PatchAutoencoder) -> None:
    raw = fitted.encode_degraded(pictures(2))
    assert raw.is_contiguous()
    decoded = fitted.decode(raw)
    assert decoded.is_contiguous(memory_format=torch.channels_last), "convolutions on a CPU are slower otherwise"
    torch.testing.assert_close(decoded, fitted.decoder(raw), atol=1e-5, rtol=0)
    torch.testing.assert_close(raw, fitted.cleaner(fitted.encode(pictures(2))), atol=1e-5, rtol=0)
