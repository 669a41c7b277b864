"""Masked training: the ratio follows the paper's formula, the tokens are drawn per sample, dropped means gone."""

import math

import pytest
import torch

from eam_core.mim import MaskConfig, keep_tokens, mask_ratio

STEPS = 200


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ratios(config: MaskConfig, num_steps: int = STEPS) -> list[float]:
    return [mask_ratio(config, step, num_steps, draw(step)) for step in range(num_steps)]


def equation_1(p: int, t: int, r_min: float, c: int, k: float, sigma: float) -> float:
    """The formula as printed, nothing else."""
    if p < k:
        return 1 - (1 - r_min) * (math.floor(p * c / k) + sigma) / c
    return r_min


@pytest.mark.parametrize("r_min", [0.75, 0.5, 0.0])
@pytest.mark.parametrize("clip", [1, 4, 5])
@pytest.mark.parametrize("share", [0.5, 0.25, 1.0])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_pms_is_equation_1(r_min, clip, share, kind):
    config = MaskConfig(strategy="pms", min_ratio=r_min, clip=clip, progressive_share=share, sigma=kind)
    for step, got in enumerate(ratios(config)):
        sigma = (torch.rand if kind == "uniform" else torch.randn)((), generator=draw(step)).item()
        printed = equation_1(step, STEPS, r_min, clip, share * STEPS, sigma)
        assert got == pytest.approx(min(max(printed, 0), 1), abs=1e-12)


def test_uniform_pms_walks_down_five_stairs_and_stays_on_the_last():
    got = torch.tensor(ratios(MaskConfig(), num_steps=20_000))
    for stair, part in enumerate(got[:10_000].chunk(5)):
        low, high = 0.95 - 0.05 * stair, 1 - 0.05 * stair
        assert low <= part.min() + 1e-6 and part.max() <= high + 1e-6
        assert part.mean().item() == pytest.approx((low + high) / 2, abs=0.002)
        assert part.std().item() == pytest.approx(0.05 / 12**0.5, abs=0.001)
    assert (got[10_000:] == 0.75).all()


def test_normal_pms_leaves_its_stair_but_never_the_possible():
    got = torch.tensor(ratios(MaskConfig(sigma="normal"), num_steps=4_000))
    assert got.max() == 1.0  # clamped
    assert (got[1600:2000] < 0.75).any()  # below r_min, on the last stair
    assert got[400:800].std() > 0.03


def test_no_progressive_steps_means_the_last_ratio_from_the_start():
    assert set(ratios(MaskConfig(progressive_share=0.0))) == {0.75}


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.85])
def test_fixed_is_always_the_same(ratio):
    assert set(ratios(MaskConfig(strategy="fixed", ratio=ratio))) == {ratio}


def test_none_masks_nothing():
    assert set(ratios(MaskConfig(strategy="none"))) == {0.0}
    assert keep_tokens(64, 0.0, [draw(), draw(1)]) is None


def test_random_fills_its_range_evenly():
    got = torch.tensor(ratios(MaskConfig(strategy="random"), num_steps=4_000))
    assert 0.75 <= got.min() < 0.751 and 0.999 < got.max() <= 1.0
    assert got.mean().item() == pytest.approx(0.875, abs=0.004)
    assert got.std().item() == pytest.approx(0.25 / 12**0.5, abs=0.002)


def test_ratio_follows_from_the_generator_alone():
    config = MaskConfig(strategy="random")
    assert mask_ratio(config, 3, STEPS, draw(7)) == mask_ratio(config, 3, STEPS, draw(7))
    assert mask_ratio(config, 3, STEPS, draw(7)) != mask_ratio(config, 3, STEPS, draw(8))


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "num_kept"), [(4096, 0.75, 1024), (64, 0.85, 10), (64, 1.0, 1), (9, 0.5, 4), (3, 0.99, 1)]
)
def test_number_of_kept_tokens(num_tokens, ratio, num_kept):
    keep = keep_tokens(num_tokens, ratio, [draw(), draw(1), draw(2)])
    assert keep.shape == (3, num_kept)
    assert keep.dtype == torch.int64
    assert (keep.diff(dim=1) > 0).all()
    assert keep.min() >= 0 and keep.max() < num_tokens


def test_each_sample_draws_for_itself():
    both = keep_tokens(64, 0.75, [draw(1), draw(2)])
    assert not torch.equal(both[0], both[1])
    assert torch.equal(keep_tokens(64, 0.75, [draw(2)])[0], both[1])


def test_every_token_is_kept_equally_often():
    keep = keep_tokens(16, 0.75, [draw(seed) for seed in range(4_000)])
    share = torch.bincount(keep.flatten(), minlength=16) / 4_000
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4_000) ** 0.5


@torch.no_grad()
def test_nothing_masked_equals_no_mask_and_dropped_tokens_have_no_influence(tiny):
    model = tiny.model("joint")
    generator = draw(3)
    latents, lr = torch.randn(2, 2, 16, 8, 8, generator=generator)
    given = (latents, torch.tensor([800.0, 300.0]), torch.randn(2, 4, 32, generator=generator), torch.randn(2, 24))
    everything = torch.arange(16).expand(2, -1)
    assert keep_tokens(16, 0.0, [draw(), draw()]) is None
    assert torch.equal(model(*given, lr, keep=everything), model(*given, lr, keep=None))

    keep = keep_tokens(16, 0.75, [draw(1), draw(2)])
    kept = torch.zeros(2, 16).scatter(1, keep, 1.0).view(2, 1, 4, 4)
    kept = kept.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    masked = model(*given, lr, keep=keep)
    assert torch.equal(model(*given, torch.where(kept > 0, lr, 100.0), keep=keep), masked)
    assert not torch.allclose(model(*given, torch.where(kept > 0, 100.0, lr), keep=keep), masked, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "progressive"}, "strategy to be one of .*'pms'.*, got 'progressive'"),
        ({"sigma": "gauss"}, "sigma to be one of .*, got 'gauss'"),
        ({"ratio": 1.1}, r"ratio in \[0, 1\], got 1.1"),
        ({"min_ratio": 0.9, "max_ratio": 0.8}, "min_ratio of at most max_ratio 0.8, got 0.9"),
        ({"clip": 0}, "clip of at least 1, got 0"),
        ({"progressive_share": -0.5}, r"progressive_share in \[0, 1\], got -0.5"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MaskConfig(**change)


def test_impossible_calls_are_refused():
    for step in (-1, STEPS):
        with pytest.raises(ValueError, match=f"step from 0 to 199, got {step}"):
            mask_ratio(MaskConfig(), step, STEPS, draw())
    with pytest.raises(ValueError, match=r"ratio in \[0, 1\], got 75"):
        keep_tokens(16, 75, [draw()])
    with pytest.raises(ValueError, match="num_tokens of at least 1, got 0"):
        keep_tokens(0, 0.5, [draw()])
