"""The whole restoration: tiles, guidance and control do what their names say, and sizes come out right."""

import pytest
import torch
from safetensors.torch import save_file

from eam_core import denoiser as denoiser_module
from eam_core.denoiser import Text, TiledDenoiser
from eam_core.errors import CheckpointError, EAMError, ImageError
from eam_core.flow import denoised_from_velocity, schedule, timestep
from eam_core.images import Picture, resize
from eam_core.loading import spec_of
from eam_core.model.autoencoder import scale_latents, unscale_latents
from eam_core.model.mmdit import MMDiTParams
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED, SD3
from eam_core.restore_config import RestoreConfig
from eam_core.sampling import initial_latents, make_noise, sample_euler
from eam_core.start import latent_aligned
from eam_core.tile_plan import meeting_tiles, overlapping_tiles
from eam_core.weight_files import save_weights

LR_ATTENTIONS = ("joint", "self", "cross")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photo(height=40, width=56, batch=1, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return resize(torch.rand(batch, 3, height // 4, width // 4, generator=generator), (height, width))


def config(**changes):
    return RestoreConfig(**{"scale": 2, "steps": 2, "tile": 64, "overlap": 32, "color_fix": "none"} | changes)


def text(seed, size=32):
    generator = torch.Generator().manual_seed(seed)
    return Text(torch.randn(1, 4, size, generator=generator), torch.randn(1, 24, generator=generator))


@pytest.fixture(scope="module")
def restorer(tiny):
    return tiny.restorer()


@pytest.mark.parametrize("lr_attention", LR_ATTENTIONS)
def test_one_tile_equals_plain_sampling(tiny, lr_attention):
    """Repeat the restoration from its equations, without tiles, memory or guidance code."""
    restorer, image, settings = tiny.restorer(lr_attention), photo(), config(tile=128, seed=5, steps=3)
    enlarged = resize(image, (80, 112))
    with torch.no_grad():
        lr = scale_latents(restorer.autoencoder.encode(enlarged * 2 - 1))

        def denoise(x, sigma):
            context, pooled = torch.zeros(1, 4, 32), torch.zeros(1, 24)
            velocity = restorer.model(x, torch.tensor([timestep(sigma)]), context, pooled, lr)
            return denoised_from_velocity(x, velocity, sigma)

        start = initial_latents(make_noise(tuple(lr.shape), 5), lr, settings.sigma_start)
        latents = sample_euler(denoise, start, schedule(3, 1.0, settings.sigma_start))
        expected = (restorer.autoencoder.decode(unscale_latents(latents)) / 2 + 0.5).clamp(0, 1)
    assert expected.std() > 0.1
    torch.testing.assert_close(restorer.restore(image, settings), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lr_attention", LR_ATTENTIONS)
def test_tile_batch_does_not_change_the_picture(tiny, lr_attention):
    restorer, image = tiny.restorer(lr_attention), photo(60, 100, batch=2)
    pictures = [restorer.restore(image, config(tile_batch=n)) for n in (1, 3, 100)]
    for other in pictures[1:]:
        torch.testing.assert_close(other, pictures[0], rtol=0, atol=1e-5)


def test_no_model_call_is_larger_than_a_tile(tiny):
    restorer, sizes = tiny.restorer(), []
    restorer.model.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape)))
    restorer.restore(photo(100, 140), config(tile=64, tile_batch=2))
    assert len(sizes) > 10
    assert {size[2:] for size in sizes} == {(8, 8)}
    assert {size[0] for size in sizes} <= {1, 2}


def test_tiles_share_one_noise_and_leave_no_seams(tiny, monkeypatch):
    """With a network that looks at single latents only, tiles can make no difference."""
    restorer = tiny.restorer("joint")
    pointwise = lambda latents, timestep, context, pooled, lr, control_scale: 0.7 * latents - lr**2  # noqa: E731
    monkeypatch.setattr(restorer.model, "forward", pointwise)
    tiled, whole = (restorer.restore(photo(60, 100), config(tile=tile)) for tile in (64, 256))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_seed_decides_the_picture(restorer):
    image = photo()
    first, again, other = (restorer.restore(image, config(seed=seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 1e-3


@pytest.mark.parametrize("height, width, scale", [(16, 16, 1), (17, 23, 1), (33, 50, 1.5), (21, 64, 4), (19, 31, 8)])
def test_result_has_exactly_the_size_asked_for(restorer, height, width, scale):
    result = restorer.restore(photo(height, width), config(scale=scale, steps=1))
    assert result.shape == (1, 3, round(height * scale), round(width * scale))
    assert result.min() >= 0 and result.max() <= 1


def test_latent_aligned_side_is_the_nearest_multiple_of_8():
    assert [latent_aligned(side, 1.5) for side in (16, 19, 33)] == [24, 32, 48]


def test_full_fidelity_in_one_step_gives_the_input_back(restorer):
    image = photo()
    enlarged = resize(image, (80, 112))
    expected = restorer.decode(restorer.encode(enlarged))
    faithful = restorer.restore(image, config(steps=1, fidelity=1.0))
    torch.testing.assert_close(faithful, expected, rtol=0, atol=1e-5)
    assert (restorer.restore(image, config(steps=1)) - expected).abs().mean() > 1e-3


def test_color_fix_takes_the_inputs_colours(restorer):
    image = photo()
    enlarged = resize(image, (80, 112))
    plain, fixed = (restorer.restore(image, config(color_fix=name)) for name in ("none", "adain"))
    means = [(picture.mean(dim=(2, 3)) - enlarged.mean(dim=(2, 3))).abs().max() for picture in (plain, fixed)]
    assert means[1] < means[0]
    assert means[1] < 0.01


def run_denoiser(tiny, settings, *, positive=0, negative=None, sigma=0.4, **options):
    lr, x = make_noise((1, 16, 12, 20), 1), make_noise((1, 16, 12, 20), 2)
    texts = (text(positive), None if negative is None else text(negative))
    with torch.no_grad():
        return TiledDenoiser(tiny.model(), lr, *texts, settings, **options)(x, sigma)


def test_guidance_mixes_both_prompts_linearly_in_sigma(tiny):
    one, two = (run_denoiser(tiny, config(), positive=seed) for seed in (0, 1))
    assert (one - two).abs().max() > 1e-3
    # From 6 at sigma 1 to 1 at sigma 0: 3 at sigma 0.4.
    got = run_denoiser(tiny, config(cfg_scale=6, cfg_scale_end=1), positive=0, negative=1)
    torch.testing.assert_close(got, two + 3 * (one - two), rtol=0, atol=1e-4)
    assert torch.equal(run_denoiser(tiny, config(), positive=0, negative=1), one)


@pytest.mark.parametrize(
    ("window", "calls"),
    [
        ({}, 2),
        ({"cfg_start_percent": 0.7}, 1),
        ({"cfg_end_percent": 0.5}, 1),
        ({"cfg_start_percent": 0.5, "cfg_end_percent": 0.65}, 2),
    ],
)
def test_guidance_acts_only_between_start_and_end(tiny, monkeypatch, window, calls):
    seen, velocity = [], TiledDenoiser._velocity
    monkeypatch.setattr(TiledDenoiser, "_velocity", lambda *args: seen.append(1) or velocity(*args))
    alone = run_denoiser(tiny, config(), positive=0)
    once = len(seen)
    # At shift 1, sigma 0.4 is 60% of the way.
    got = run_denoiser(tiny, config(cfg_scale=6, **window), positive=0, negative=1)
    assert len(seen) == (1 + calls) * once, "outside, the negative prompt's calls are saved"
    always = run_denoiser(tiny, config(cfg_scale=6), positive=0, negative=1)
    assert torch.equal(got, always if calls == 2 else alone) and not torch.equal(always, alone)


def test_control_acts_only_between_start_and_end(tiny):
    with_control, without = (run_denoiser(tiny, config(control_scale=scale)) for scale in (1, 0))
    assert (with_control - without).abs().max() > 1e-2
    # At shift 1, sigma 0.4 is 60% of the way.
    assert torch.equal(run_denoiser(tiny, config(control_start=0.7)), without)
    assert torch.equal(run_denoiser(tiny, config(control_end=0.5)), without)
    assert torch.equal(run_denoiser(tiny, config(control_start=0.5, control_end=0.7)), with_control)


def test_lr_state_is_remembered_per_tile_while_it_fits(tiny, monkeypatch):
    restorer, calls = tiny.restorer("self"), []
    remember = restorer.model.remember
    monkeypatch.setattr(restorer.model, "remember", lambda lr: calls.append(1) or remember(lr))
    expected = restorer.restore(photo(60, 100), config(steps=3, tile_batch=1))
    grid = config().latent_grid(15, 25)
    num_tiles = len({*overlapping_tiles(grid).boxes, *meeting_tiles(grid, 0).boxes, *meeting_tiles(grid, 1).boxes})
    assert len(calls) == num_tiles
    monkeypatch.setattr(denoiser_module, "LR_MEMORY_BYTES", 0)
    assert torch.equal(restorer.restore(photo(60, 100), config(steps=3, tile_batch=1)), expected)
    assert len(calls) == num_tiles, "what is not kept pays for no step alone"


def test_progress_counts_tiles_of_all_steps_and_may_stop_the_run(restorer):
    seen = []
    restorer.restore(photo(60, 100), config(tile_batch=4), lambda done, total: seen.append((done, total)))
    grid = config().latent_grid(15, 25)
    total = len(overlapping_tiles(grid).boxes) + len(meeting_tiles(grid, 0).boxes)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restorer.restore(photo(), config(), stop)


def test_transparency_is_enlarged_apart_from_colour(restorer):
    image = photo()
    alpha = torch.zeros(1, 1, 40, 56)
    alpha[..., 28:] = 1
    result = restorer.restore_picture(Picture(rgb=image, alpha=alpha, icc_profile=b"p"), config())
    assert torch.equal(result.rgb, restorer.restore(image, config()))
    assert result.icc_profile == b"p" and result.alpha is not None
    assert result.alpha.shape == (1, 1, 80, 112)
    assert result.alpha[..., :50].max() < 0.05 and result.alpha[..., 62:].min() > 0.95


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"scale": 0}, "scale"),
        ({"scale": 100}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"steps": 0}, "steps"),
        ({"sampler": "heun"}, "sampler"),
        ({"shift": 0}, "shift"),
        ({"sigma_start": 0}, "sigma_start"),
        ({"sigma_start": 1.1}, "sigma_start"),
        ({"tile": 0}, "tile"),
        ({"tile": 100}, "tile"),
        ({"overlap": 64}, "overlap"),
        ({"overlap": -8}, "overlap"),
        ({"tile_batch": -1}, "tile_batch"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"fidelity": 1.5}, "fidelity"),
        ({"control_scale": -1}, "control_scale"),
        ({"control_start": 0.5, "control_end": 0.5}, "control_start"),
        ({"cfg_scale": float("inf")}, "cfg_scale"),
        ({"cfg_scale_end": -1}, "cfg_scale_end"),
        ({"cfg_start_percent": 0.5, "cfg_end_percent": 0.5}, "cfg_start_percent"),
        ({"color_fix": "sepia"}, "colour fix"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, word):
    with pytest.raises((ValueError, EAMError), match=word) as caught:
        config(**changes)
    assert "expected" in str(caught.value)


def test_settings_follow_the_family():
    settings = RestoreConfig.from_spec(SD3, steps=9)
    assert (settings.shift, settings.sampler, settings.cfg_scale, settings.steps) == (3.0, "dpmpp_2m", 5.0, 9)
    assert RestoreConfig() == RestoreConfig.from_spec(EMBEDDED)
    assert RestoreConfig.from_spec(SD3, tile=512).overlap == 128
    assert RestoreConfig.from_spec(SD3, tile=512, overlap=64).overlap == 64


def test_pictures_and_tiles_that_do_not_fit_are_refused(restorer):
    with pytest.raises(ImageError, match="1 x 1"):
        restorer.restore(torch.rand(1, 3, 1, 1), config())
    with pytest.raises(ValueError, match="RGB"):
        restorer.restore(torch.rand(1, 1, 32, 32), config())
    with pytest.raises(ValueError, match="at most 512 pixels"):
        restorer.restore(photo(), config(tile=528))


def test_settings_without_effect_are_told(restorer):
    with pytest.warns(UserWarning, match="prompt has no effect"):
        restorer.restore(photo(), config(prompt="a cat"))
    with pytest.warns(UserWarning, match="cfg_scale has no effect"):
        restorer.restore(photo(), config(cfg_scale=4))


def test_files_give_the_model_that_was_saved(tiny, restorer, tmp_path):
    loaded = Restorer.from_files(**vars(tiny.save(tmp_path)))
    assert loaded.spec is EMBEDDED
    # The autoencoder was saved in half precision.
    expected = restorer.restore(photo(), config())
    torch.testing.assert_close(loaded.restore(photo(), config()), expected, rtol=0, atol=0.01)


def test_files_that_do_not_belong_together_are_refused(tiny, tmp_path):
    paths = vars(tiny.save(tmp_path))
    other = tiny.model(params=MMDiTParams(depth=3, hidden_size=128, context_size=32, pooled_size=24))
    save_weights(tmp_path / "other.safetensors", other.control.state_dict())
    with pytest.raises(CheckpointError, match=r"other\.safetensors was trained for another.*depth 3 instead of 2"):
        Restorer.from_files(**paths | {"control": tmp_path / "other.safetensors"})
    save_weights(tmp_path / "ae8.safetensors", tiny.autoencoder(channels=8).state_dict())
    with pytest.raises(CheckpointError, match="16 latent channels"):
        Restorer.from_files(**paths | {"autoencoder": tmp_path / "ae8.safetensors"})
    with pytest.raises(CheckpointError, match="holds EAM control weights"):
        Restorer.from_files(**paths | {"base": paths["control"]})
    with pytest.raises(EAMError, match="device"):
        Restorer.from_files(**paths, device="toaster")


def test_a_base_is_text_free_when_it_says_so(tiny, tmp_path):
    paths = tiny.save(tmp_path)
    assert spec_of(paths.base) is EMBEDDED
    assert spec_of(paths.control) is SD3
    assert spec_of(tmp_path) is SD3
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors", metadata={"training": "yes"})
    assert spec_of(tmp_path / "foreign.safetensors") is SD3


@pytest.mark.skipif(not (EMBEDDED.base and EMBEDDED.base.is_file()), reason="the embedded weights are not there")
def test_embedded_model_keeps_what_the_picture_shows():
    image = photo(48, 64)
    restored = Restorer.embedded().restore(image, RestoreConfig(scale=2, steps=2))
    difference = restored - resize(image, (96, 128))
    assert -10 * difference.square().mean().log10() > 20  # dB
