"""Samplers against a problem whose solution is known, and starts that repeat ComfyUI's."""

import math
from itertools import pairwise

import pytest
import torch

from eam_core import flow, sampling

MEAN, STD = 0.7, 0.5


def gaussian_denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return E[x0 | x] for data ~ N(MEAN, STD^2)."""
    gain = (1 - sigma) * STD**2 / spread(sigma) ** 2
    return MEAN + gain * (x - (1 - sigma) * MEAN)


def spread(sigma: float) -> float:
    return math.sqrt((1 - sigma) ** 2 * STD**2 + sigma**2)


def gaussian_solution(x: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """Follow the flow exactly: the standardised value of a gaussian never changes."""
    return (1 - end) * MEAN + spread(end) * (x - (1 - start) * MEAN) / spread(start)


def start() -> torch.Tensor:
    return sampling.make_noise((1, 2, 4, 4), 3).double()


def error(name: str, num_steps: int, end: float) -> float:
    sigmas = torch.linspace(1, end, num_steps + 1, dtype=torch.float64)
    x = sampling.get_sampler(name)(gaussian_denoise, start(), sigmas, None)
    return (x - gaussian_solution(start(), 1.0, end)).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp_2m", 2)])
def test_error_shrinks_with_the_order_of_the_sampler(name, order):
    rate = math.log2(error(name, 40, 0.1) / error(name, 80, 0.1))
    assert rate == pytest.approx(order, abs=0.25)


def test_2m_is_nearer_than_euler_on_a_real_schedule():
    sigmas = flow.schedule(20, 3.0)
    exact = gaussian_solution(start(), 1.0, 0.0)
    euler, multi = (
        (sampler(gaussian_denoise, start(), sigmas) - exact).abs().max().item()
        for sampler in (sampling.sample_euler, sampling.sample_dpmpp_2m)
    )
    assert multi < euler / 3


def reference_2m(denoise, x, sigmas):
    """DPM-Solver++(2M) in the words of k-diffusion: t = -log(sigma), h, r, expm1."""
    previous = None
    for i in range(len(sigmas) - 1):
        denoised = denoise(x, float(sigmas[i]))
        h = sigmas[i].log() - sigmas[i + 1].log()
        target = denoised
        if previous is not None and sigmas[i + 1] > 0:
            r = (sigmas[i - 1].log() - sigmas[i].log()) / h
            target = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * previous
        x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * target
        previous = denoised
    return x


def test_samplers_take_k_diffusion_steps():
    def denoise(x, sigma):
        return torch.tanh(x * (1 - sigma)) + 0.1 * x.flip(-1)

    sigmas = flow.schedule(9, 3.0, 0.9)
    x = sampling.make_noise((2, 3, 4, 4), 1)
    torch.testing.assert_close(sampling.sample_dpmpp_2m(denoise, x, sigmas), reference_2m(denoise, x, sigmas))
    expected = x
    for sigma, sigma_next in pairwise(sigmas):
        expected = expected + (expected - denoise(expected, float(sigma))) / sigma * (sigma_next - sigma)
    torch.testing.assert_close(sampling.sample_euler(denoise, x, sigmas), expected)


@pytest.mark.parametrize("name", sampling.SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_callback_sees_every_step_and_the_last_denoised_is_the_result(name, num_steps):
    seen = []
    sigmas = flow.schedule(num_steps, 3.0)
    x = start().float()
    result = sampling.get_sampler(name)(gaussian_denoise, x, sigmas, lambda *step: seen.append(step))
    assert [(step, total) for step, total, _, _ in seen] == [(i, num_steps) for i in range(num_steps)]
    assert torch.equal(seen[0][2], x)
    assert torch.equal(seen[-1][3], result)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_the_model_is_asked_once_per_level_and_the_input_is_kept(name):
    asked = []

    def denoise(x, sigma):
        asked.append(sigma)
        return 0.5 * x

    x = start()
    kept = x.clone()
    sigmas = flow.schedule(6, 3.0)
    sampling.get_sampler(name)(denoise, x, sigmas, None)
    assert asked == sigmas[:-1].tolist()
    assert torch.equal(x, kept)


def test_a_callback_can_stop_the_run():
    def stop(step, *_):
        if step == 1:
            raise KeyboardInterrupt

    asked = []
    with pytest.raises(KeyboardInterrupt):
        sampling.sample_euler(lambda x, s: asked.append(s) or x, start(), flow.schedule(9, 3.0), stop)
    assert len(asked) == 2


@pytest.mark.parametrize("sigmas", [[], [1.0], [0.5, 0.5], [0.2, 0.8], [0.5, -0.1], [1.0, float("nan")]])
@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_sigmas_must_fall(name, sigmas):
    with pytest.raises(ValueError, match="decreasing"):
        sampling.get_sampler(name)(gaussian_denoise, start(), torch.tensor(sigmas), None)


def test_unknown_sampler_names_the_choices():
    with pytest.raises(ValueError, match=r"dpmpp_2m.*euler.*heun"):
        sampling.get_sampler("heun")


def test_noise_is_what_comfyui_draws_and_leaves_the_global_seed_alone():
    torch.manual_seed(1234)
    expected = torch.randn(1, 16, 8, 8)
    torch.manual_seed(0)
    following = torch.randn(1)
    torch.manual_seed(0)
    noise = sampling.make_noise((1, 16, 8, 8), 1234)
    assert torch.equal(noise, expected)
    assert torch.equal(torch.randn(1), following)
    assert sampling.make_noise((1,), 2**64 - 1).shape == (1,)


def test_start_mixes_lr_latents_and_noise():
    noise, lr_latents = sampling.make_noise((1, 16, 4, 4), 0), sampling.make_noise((1, 16, 4, 4), 1)
    assert torch.equal(sampling.initial_latents(noise, lr_latents, 1.0), noise)
    torch.testing.assert_close(sampling.initial_latents(noise, lr_latents, 0.9), 0.1 * lr_latents + 0.9 * noise)
