"""TALA: how often, for whom and with what the HR latent is replaced."""

import pytest
import torch

from eam_core.flow import sample_sigmas
from eam_core.tala import substitute_lr


def replaced(sigma: torch.Tensor, exponent: float, seed: int = 0) -> torch.Tensor:
    """Return which samples [B] took the LR latent."""
    hr, lr = torch.zeros(len(sigma), 1, 1, 1), torch.ones(len(sigma), 1, 1, 1)
    return substitute_lr(hr, lr, sigma, exponent, torch.Generator().manual_seed(seed)).flatten()


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("sigma", [0.2, 0.6, 0.95])
def test_rate_is_sigma_to_the_exponent(sigma, exponent):
    n, wanted = 40_000, sigma**exponent
    rate = replaced(torch.full((n,), sigma), exponent).mean().item()
    assert rate == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / n) ** 0.5 + 1e-6)


def test_mean_rate_of_consissr_with_sd3s_training_times():
    sigma = sample_sigmas(400_000, torch.Generator().manual_seed(1), shift=3.0)
    assert replaced(sigma, 10.0).mean().item() == pytest.approx(0.138, abs=0.0025)


def test_each_sample_is_drawn_alone_and_taken_whole():
    hr, lr = torch.randn(64, 4, 3, 5), torch.randn(64, 4, 3, 5)
    got = substitute_lr(hr, lr, torch.full((64,), 0.5), 1.0, torch.Generator().manual_seed(0))
    from_lr, from_hr = ((got == x).flatten(1).all(1) for x in (lr, hr))
    assert (from_lr ^ from_hr).all()
    assert 16 < from_lr.sum() < 48


def test_own_sigma_decides_for_each_sample():
    sigma = torch.tensor([0.0, 1.0]).repeat(50)
    assert torch.equal(replaced(sigma, 10.0), sigma)


def test_exponent_zero_always_takes_the_lr_latent():
    assert replaced(torch.linspace(0, 1, 50), 0.0).all()


def test_same_seed_same_choice():
    sigma = torch.full((100,), 0.5)
    assert torch.equal(replaced(sigma, 1.0, seed=3), replaced(sigma, 1.0, seed=3))
    assert not torch.equal(replaced(sigma, 1.0, seed=3), replaced(sigma, 1.0, seed=4))


def test_other_shapes_and_negative_exponents_are_refused():
    hr = torch.zeros(2, 4, 8, 8)
    with pytest.raises(ValueError, match=r"HR latents' shape \[2, 4, 8, 8\], got \[2, 4, 8, 4\]"):
        substitute_lr(hr, hr[..., :4], torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="exponent of at least 0, got -1"):
        substitute_lr(hr, hr, torch.zeros(2), -1)
