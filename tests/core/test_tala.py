"""TALA: how often, for whom and with what the HR latent is replaced."""

import pytest
import torch

from eam_core.flow import add_noise, denoised_from_velocity, sample_sigmas, shift_sigma, velocity_from_denoised
from eam_core.tala import substitute_lr, tala_time


def uniform(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


def replaced(time: torch.Tensor, exponent: float, draws: torch.Tensor | None = None) -> torch.Tensor:
    """Return which samples [B] took the LR latent."""
    hr, lr = torch.zeros(len(time), 1, 1, 1), torch.ones(len(time), 1, 1, 1)
    return substitute_lr(hr, lr, time, exponent, uniform(len(time)) if draws is None else draws).flatten()


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("time", [0.2, 0.6, 0.95])
def test_rate_is_time_to_the_exponent(time, exponent):
    n, wanted = 40_000, time**exponent
    rate = replaced(torch.full((n,), time), exponent).mean().item()
    assert rate == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / n) ** 0.5 + 1e-6)


@pytest.mark.parametrize(("variable", "wanted"), [("sigma", 0.138), ("u", 0.029)])
def test_mean_rate_of_consissr_with_sd3s_training_times(variable, wanted):
    sigma = sample_sigmas(400_000, torch.Generator().manual_seed(1), shift=3.0)
    time = tala_time(sigma, variable, shift=3.0)
    assert replaced(time, 10.0).mean().item() == pytest.approx(wanted, abs=0.002)


def test_u_is_the_time_before_the_shift():
    u = torch.linspace(0, 1, 11)
    torch.testing.assert_close(tala_time(shift_sigma(u, 3.0), "u", shift=3.0), u)
    assert torch.equal(tala_time(u, "sigma", shift=3.0), u)


def test_each_sample_is_drawn_alone_and_taken_whole():
    hr, lr = torch.randn(64, 4, 3, 5), torch.randn(64, 4, 3, 5)
    got = substitute_lr(hr, lr, torch.full((64,), 0.5), 1.0, uniform(64))
    from_lr, from_hr = ((got == x).flatten(1).all(1) for x in (lr, hr))
    assert (from_lr ^ from_hr).all()
    assert torch.equal(from_lr, uniform(64) < 0.5)


def test_own_time_decides_for_each_sample():
    time = torch.tensor([0.0, 1.0]).repeat(50)
    assert torch.equal(replaced(time, 10.0), time)


def test_exponent_zero_always_takes_the_lr_latent():
    assert replaced(torch.linspace(0, 1, 50), 0.0).all()


def test_a_samples_choice_does_not_depend_on_its_batch():
    time, draws = torch.full((100,), 0.5), uniform(100)
    halves = [replaced(time[part], 1.0, draws[part]) for part in (slice(0, 30), slice(30, 100))]
    assert torch.equal(torch.cat(halves), replaced(time, 1.0, draws))


def test_velocity_towards_hr_is_the_formula_of_the_augmented_flow():
    hr, lr, noise = torch.randn(3, 2, 4, 2, 2, dtype=torch.float64)
    sigma = torch.tensor([0.95, 0.6], dtype=torch.float64)
    start = substitute_lr(hr, lr, sigma, 0.0, uniform(2))
    x = add_noise(start, noise, sigma)
    velocity = velocity_from_denoised(x, hr, sigma)
    s = sigma.view(2, 1, 1, 1)
    torch.testing.assert_close(velocity, noise - hr + (1 - s) / s * (lr - hr))
    torch.testing.assert_close(denoised_from_velocity(x, velocity, sigma), hr)


def test_other_shapes_and_impossible_settings_are_refused():
    hr, half = torch.zeros(2, 4, 8, 8), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match=r"HR latents' shape \[2, 4, 8, 8\], got \[2, 4, 8, 4\]"):
        substitute_lr(hr, hr[..., :4], half, 1.0, half)
    with pytest.raises(ValueError, match=r"one draw per sample, \[2\], got \[2\] and \[1\]"):
        substitute_lr(hr, hr, half, 1.0, half[:1])
    with pytest.raises(ValueError, match="exponent of at least 0, got -1"):
        substitute_lr(hr, hr, half, -1, half)
    with pytest.raises(ValueError, match=r"one of \('sigma', 'u'\), got 't'"):
        tala_time(half, "t", 3.0)  # type: ignore[arg-type]
