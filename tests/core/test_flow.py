"""The flow's algebra, and noise levels that agree with ComfyUI's."""

import pytest
import torch

from eam_core import flow


def latents(seed: int) -> torch.Tensor:
    return torch.randn(3, 16, 4, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.3, torch.tensor(0.3), torch.tensor([0.1, 0.5, 1.0])])
def test_velocity_and_denoised_lead_back_to_the_clean_latents(sigma):
    x0, noise = latents(0), latents(1)
    x = flow.add_noise(x0, noise, sigma)
    velocity = flow.velocity_target(x0, noise)
    torch.testing.assert_close(flow.denoised_from_velocity(x, velocity, sigma), x0, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(flow.velocity_from_denoised(x, x0, sigma), velocity, atol=1e-5, rtol=1e-5)


def test_noise_is_added_to_each_sample_by_its_own_sigma():
    x0, noise = latents(0), latents(1)
    x = flow.add_noise(x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(x[0], x0[0])
    torch.testing.assert_close(x[1], 0.75 * x0[1] + 0.25 * noise[1])
    assert torch.equal(x[2], noise[2])


def test_latents_keep_their_dtype():
    x0, noise = latents(0).half(), latents(1).half()
    assert flow.add_noise(x0, noise, torch.tensor([0.2, 0.4, 0.6])).dtype == torch.float16


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_shift_has_fixed_ends_and_its_inverse(shift):
    u = torch.linspace(0, 1, 11)
    sigma = flow.shift_sigma(u, shift)
    assert sigma[0] == 0
    assert sigma[-1] == 1
    torch.testing.assert_close(flow.shift_sigma(sigma, 1 / shift), u)


def test_shift_three_puts_the_middle_at_three_quarters():
    assert flow.shift_sigma(0.5, 3.0) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="shift > 0"):
        flow.shift_sigma(0.5, 0.0)


def test_timestep_runs_to_a_thousand():
    assert flow.timestep(0.75) == 750
    assert flow.timestep(torch.tensor([0.5, 1.0])).tolist() == [500, 1000]


def test_training_sigmas_follow_the_shifted_logit_normal():
    sigmas = flow.sample_sigmas(20000, torch.Generator().manual_seed(0), 3.0, mean=0.5, std=0.8)
    assert sigmas.shape == (20000,)
    assert sigmas.min() > 0
    assert sigmas.max() < 1
    logit = torch.logit(flow.shift_sigma(sigmas, 1 / 3.0))
    assert logit.mean().item() == pytest.approx(0.5, abs=0.03)
    assert logit.std().item() == pytest.approx(0.8, abs=0.03)


def test_training_sigmas_repeat_with_the_generator():
    first, second = (flow.sample_sigmas(5, torch.Generator().manual_seed(7), 3.0) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        # u = 1 - i/4*(1 - u_end) with u_end = shift*.001/(1 + (shift-1)*.001), then shift*u/(1 + (shift-1)*u).
        (1.0, [1.0, 0.75025, 0.5005, 0.25075, 0.0]),
        (3.0, [1.0, 0.90035909, 0.75112110, 0.50298506, 0.0]),
        (6.0, [1.0, 0.94776469, 0.85859871, 0.67192119, 0.0]),
    ],
)
def test_schedule_equals_comfyui_sgm_uniform(shift, expected):
    torch.testing.assert_close(flow.schedule(4, shift), torch.tensor(expected), atol=2e-7, rtol=0)


def test_schedule_from_the_middle_is_the_tail_of_a_longer_one():
    full = flow.schedule(50, 3.0)
    torch.testing.assert_close(flow.schedule(20, 3.0, sigma_start=full[30].item()), full[30:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma_start", [1.0, 0.94, 0.3])
@pytest.mark.parametrize("num_steps", [1, 2, 28])
def test_schedule_falls_from_its_start_to_zero(num_steps, sigma_start):
    sigmas = flow.schedule(num_steps, 3.0, sigma_start)
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0].item() == pytest.approx(sigma_start, abs=1e-7)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("shift", [1.1, 2.7, 3.3, 7.0])
def test_schedule_never_starts_above_one(shift):
    assert flow.schedule(10, shift)[0] == 1


@pytest.mark.parametrize(("num_steps", "sigma_start"), [(0, 1.0), (4, 0.0), (4, 0.005), (4, 1.01)])
def test_schedule_refuses_what_it_cannot_lay_out(num_steps, sigma_start):
    with pytest.raises(ValueError, match="expected"):
        flow.schedule(num_steps, 3.0, sigma_start)
