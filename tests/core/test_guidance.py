"""What the guidance dials do at their ends, and how they move in between."""

import pytest
import torch

from eam_core import flow, guidance


def latents(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_cfg_at_zero_one_and_beyond():
    positive, negative = latents(0), latents(1)
    torch.testing.assert_close(guidance.cfg(positive, negative, 1.0), positive)
    torch.testing.assert_close(guidance.cfg(positive, negative, 0.0), negative)
    torch.testing.assert_close(guidance.cfg(positive, negative, 3.0), 3 * positive - 2 * negative)


def test_cfg_on_denoised_equals_cfg_on_velocity():
    x, positive, negative, sigma = latents(0), latents(1), latents(2), 0.6
    velocity = guidance.cfg(*(flow.velocity_from_denoised(x, d, sigma) for d in (positive, negative)), 5.0)
    expected = flow.denoised_from_velocity(x, velocity, sigma)
    torch.testing.assert_close(guidance.cfg(positive, negative, 5.0), expected, atol=1e-5, rtol=1e-5)


def test_cfg_scale_moves_linearly_with_sigma():
    scales = [guidance.cfg_scale_at(sigma, 4.0, 8.0) for sigma in (1.0, 0.75, 0.5, 0.0)]
    assert scales == [4.0, 5.0, 6.0, 8.0]
    assert guidance.cfg_scale_at(0.3, 5.0, 5.0) == 5.0


@pytest.mark.parametrize(("scale", "needed"), [(1.0, False), (1.5, True), (0.0, True)])
def test_negative_prompt_is_skipped_only_at_one(scale, needed):
    assert guidance.needs_negative(scale) is needed


def pull(sigma: float, fidelity: float, sigma_max: float = 1.0) -> float:
    """Return the share of the way to the LR latents."""
    denoised, lr_latents = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    return guidance.restoration_guidance(denoised, lr_latents, sigma, fidelity, sigma_max).mean().item()


def test_fidelity_zero_changes_nothing():
    denoised = latents(0)
    assert guidance.restoration_guidance(denoised, latents(1), 1.0, 0.0) is denoised


def test_fidelity_one_starts_at_the_lr_image():
    assert pull(1.0, 1.0) == pytest.approx(1.0)
    assert pull(0.94, 1.0, sigma_max=0.94) == pytest.approx(1.0)


@pytest.mark.parametrize("sigma", [0.2, 0.7, 1.0])
def test_pull_grows_evenly_with_fidelity(sigma):
    pulls = [pull(sigma, fidelity) for fidelity in (0.25, 0.5, 1.0)]
    assert pulls == pytest.approx([pulls[2] / 4, pulls[2] / 2, pulls[2]])
    assert pulls[0] > 0


def test_pull_fades_before_details_are_drawn():
    pulls = [pull(sigma, 1.0) for sigma in (1.0, 0.8, 0.5, 0.2)]
    assert pulls == sorted(pulls, reverse=True)
    assert pulls[2] == pytest.approx(1 / 16)
    assert pulls[3] < 0.01


@pytest.mark.parametrize("fidelity", [-0.1, 1.1])
def test_fidelity_outside_its_range_is_refused(fidelity):
    with pytest.raises(ValueError, match="fidelity in \\[0, 1\\]"):
        pull(0.5, fidelity)


@pytest.mark.parametrize(
    ("percent", "sigma"), [(-1.0, 1.0), (0.0, 1.0), (0.25, 0.9), (0.5, 0.75), (0.75, 0.5), (1.0, 0.0), (2.0, 0.0)]
)
def test_percent_follows_the_shift(percent, sigma):
    assert guidance.percent_to_sigma(percent, 3.0) == pytest.approx(sigma)


def test_control_acts_only_within_its_range():
    start, end = (guidance.percent_to_sigma(percent, 3.0) for percent in (0.25, 0.75))
    scales = [guidance.control_scale_at(sigma, 0.8, start, end) for sigma in (1.0, 0.9, 0.6, 0.5, 0.4)]
    assert scales == [0.0, 0.8, 0.8, 0.8, 0.0]


@pytest.mark.parametrize("shift", [1.0, 2.7, 3.0])
def test_control_over_the_whole_range_is_on_at_every_step(shift):
    start, end = (guidance.percent_to_sigma(percent, shift) for percent in (0.0, 1.0))
    assert all(guidance.control_scale_at(sigma, 1.0, start, end) for sigma in flow.schedule(20, shift)[:-1].tolist())
