"""NaN and infinite values: the tile they arise in is found and computed in float32, or named."""

import warnings
from dataclasses import replace

import pytest
import torch

from eam_core.denoiser import Text, TiledDenoiser
from eam_core.errors import EAMError
from eam_core.flow import schedule
from eam_core.full_precision import in_float32
from eam_core.restore_config import RestoreConfig
from eam_core.sampling import sample_euler
from eam_core.tile_batch import TileBatch
from eam_core.tile_run import TileRun
from eam_core.tiling import TileGrid

HEIGHT, WIDTH = 16, 28  # latents: 1 x 3 tiles
CONFIG = RestoreConfig(steps=2, sigma_start=1.0, tile=128, overlap=64, tile_batch=1, blend_every_step=True)
BAD = (0, 6, 16, 16)  # the second tile's box


def sample(model, fails, config=CONFIG, dtype=torch.bfloat16):
    """Sample a tiny random model; `fails` says of a pass's tiles and dtype which of them turn into NaN."""
    generator = torch.Generator().manual_seed(0)
    noise, lr = torch.randn(2, 1, 16, HEIGHT, WIDTH, generator=generator)
    text = Text(torch.randn(1, 4, 32, generator=generator).to(dtype), torch.randn(1, 24, generator=generator).to(dtype))
    forward, passes = model.forward, []

    def broken(latents, *args, **kwargs):
        assert latents.dtype == next(model.parameters()).dtype
        out = forward(latents, *args, **kwargs)
        passes.append((len(latents), latents.dtype))
        for index in fails(len(passes), latents):
            out[index, 3, 2, 1] = float("nan")
        return out

    model.forward = broken
    try:
        with torch.no_grad():
            denoiser = TiledDenoiser(model, lr, text, None, config)
            sigmas = schedule(config.steps, config.shift, config.sigma_start)
            return sample_euler(denoiser, noise, sigmas, None), passes
    finally:
        model.forward = forward


@pytest.fixture
def half(tiny):
    return tiny.model("self").bfloat16()


def test_a_tile_that_fails_is_computed_again_in_float32(half):
    before = {key: value.clone() for key, value in half.state_dict().items()}
    healthy, _ = sample(half, lambda number, latents: [])
    with pytest.warns(UserWarning, match=r"the tile of 128 x 128 pixels at 48, 0 at step 1 \(sigma 1.000\).*float32"):
        # The second of three tiles; it fails again when the step is looked at tile by tile.
        mended, passes = sample(half, lambda number, latents: [0] if number in (2, 5) else [])
    assert [dtype for _, dtype in passes].count(torch.float32) == 1
    assert mended.isfinite().all()
    error = (mended - healthy).norm() / healthy.norm()
    assert 0 < error < 0.05, error
    assert all(torch.equal(value, before[key]) for key, value in half.state_dict().items())
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}


def test_healthy_runs_look_once_per_step_and_run_no_tile_twice(half, monkeypatch):
    looks = []
    own = torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: looks.append(self.shape) or own(self))
    _, passes = sample(half, lambda number, latents: [])
    assert len(passes) == 2 * 3
    assert looks == [(1, 16, HEIGHT, WIDTH)] * 2


def test_after_the_first_failure_no_step_runs_twice(half):
    with pytest.warns(UserWarning) as told:
        result, passes = sample(
            half, lambda number, latents: [0] if latents.dtype == torch.bfloat16 else [], replace(CONFIG, steps=3)
        )
    assert result.isfinite().all() and len(told) == 1
    # Three tiles and their second try; then each tile of each step twice, once in float32.
    assert len(passes) == 3 + 3 * 2 * 3


def test_one_tile_of_a_batch(half):
    config = replace(CONFIG, tile_batch=3)
    with pytest.warns(UserWarning, match="at 48, 0 at step 1"):
        result, passes = sample(half, lambda number, latents: [1] if number in (1, 2) else [], config)
    assert result.isfinite().all()
    assert [(num, dtype == torch.float32) for num, dtype in passes[:4]] == [
        (3, False), (3, False), (1, True), (3, False)
    ]  # fmt: skip


def test_what_float32_cannot_mend_is_named(half):
    with pytest.raises(
        EAMError, match=r"tile of 128 x 128 pixels at 0, 0 at step 1 \(sigma 1.000\).*in float32 too.*weights"
    ):
        sample(half, lambda number, latents: [0])
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_float32_model_is_not_run_a_third_time(tiny):
    with pytest.raises(EAMError, match="got NaN or infinite ones; weights may be damaged") as raised:
        sample(tiny.model("self"), lambda number, latents: [0], dtype=torch.float32)
    assert "float32 too" not in str(raised.value)


def test_what_came_in_is_told_from_what_went_wrong_here():
    run = TileRun(TileGrid(height=16, width=16, tile=16, overlap=0), TileBatch(1), None)
    x = torch.full((1, 4, 16, 16), float("inf"))
    with pytest.raises(EAMError, match=r"finite latents at step 7.*before the model ran"):
        run(lambda tiles, boxes: tiles, x, lambda: "step 7")


def test_layers_that_cannot_be_cast_are_an_error_in_words():
    def precisely():
        raise RuntimeError("expected mat1 and mat2 to have the same dtype")

    run = TileRun(TileGrid(height=16, width=16, tile=16, overlap=0), TileBatch(1), precisely)
    with pytest.raises(EAMError, match="the tile of 128 x 128 pixels at 0, 0 at step 7"):
        run(lambda tiles, boxes: tiles / 0, torch.ones(1, 4, 16, 16), lambda: "step 7")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_come_back_to_the_bit_even_after_a_failure(tiny, dtype):
    model = tiny.model().to(dtype)
    model.base.pos_embed.data = model.base.pos_embed.data.float()  # a tensor of its own dtype keeps it
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings(), pytest.raises(KeyError), in_float32(model):
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
        raise KeyError
    after = model.state_dict()
    assert all(after[key].dtype == value.dtype and torch.equal(after[key], value) for key, value in before.items())
