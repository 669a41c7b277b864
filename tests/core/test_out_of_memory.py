"""Memory that runs out: smaller batches, then smaller tiles, then one clear sentence; results are untroubled ones."""

import warnings
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from eam_core.denoiser import Text, TiledDenoiser
from eam_core.errors import EAMError
from eam_core.flow import schedule
from eam_core.out_of_memory import OutOfMemory, is_out_of_memory
from eam_core.presets import SPECS, fitting_overlap
from eam_core.restore_config import RestoreConfig
from eam_core.sampling import sample_euler
from eam_core.tile_batch import AUTO, TileBatch, most_auto
from eam_core.tile_run import TileRun
from eam_core.tiling import TileGrid, tiled, tiled_map

SIDE = 72  # latents
CONFIG = RestoreConfig(steps=2, sigma_start=1.0, tile=512, overlap=128, tile_batch=1, blend_every_step=True)
FAILURE = torch.OutOfMemoryError("tried to allocate 2 GiB")


class Run:
    """A tiny model that samples, with a place where memory runs out."""

    def __init__(self, tiny, lr_attention: str = "self"):
        self.model = tiny.model(lr_attention)
        params = tiny.params
        generator = torch.Generator().manual_seed(3)
        self.noise, self.lr = torch.randn(2, 1, 16, SIDE, SIDE, generator=generator)
        positive = Text(torch.randn(1, 4, params.context_size, generator=generator), torch.randn(1, params.pooled_size))
        self.texts = positive, None
        self.shapes: list[tuple[int, ...]] = []

    def sample(self, config: RestoreConfig, fails=lambda calls, shape: False, denoiser=None, side=SIDE) -> torch.Tensor:
        forward, self.shapes = self.model.forward, []

        def limited(latents, *args, **kwargs):
            self.shapes.append((len(latents), latents.shape[-1]))
            if fails(len(self.shapes), self.shapes[-1]):
                raise FAILURE
            return forward(latents, *args, **kwargs)

        self.model.forward = limited
        try:
            with torch.no_grad():
                denoise = denoiser or TiledDenoiser(self.model, self.lr[..., :side, :side], *self.texts, config)
                sigmas = schedule(config.steps, config.shift, config.sigma_start)
                return sample_euler(denoise, self.noise[..., :side, :side], sigmas, None)
        finally:
            self.model.forward = forward


@pytest.fixture(scope="module")
def run(tiny) -> Run:
    return Run(tiny)


def test_a_first_tile_that_does_not_fit_gives_exactly_the_run_with_smaller_tiles(run):
    small = replace(CONFIG, tile=256, overlap=64)
    expected = run.sample(small)
    assert not torch.allclose(expected, run.sample(CONFIG), atol=1e-3)
    with pytest.warns(UserWarning, match="going on with tile 256 and overlap 64") as told:
        got = run.sample(CONFIG, lambda calls, shape: shape[1] > 32)
    assert torch.equal(got, expected)
    assert [shape[1] for shape in run.shapes].count(48) == 2, "more than once again, without LR memory"
    assert len(told) == 1


def test_memory_that_runs_out_later_gives_the_run_that_goes_on_with_smaller_tiles(run):
    """By hand: the first step with the large tiles, the others with small ones."""
    sigmas = schedule(CONFIG.steps, CONFIG.shift, CONFIG.sigma_start)
    large, small = (
        TiledDenoiser(run.model, run.lr, *run.texts, config)
        for config in (CONFIG, replace(CONFIG, tile=256, overlap=64))
    )
    expected = run.sample(CONFIG, denoiser=lambda x, sigma: (large if sigma == sigmas[0] else small)(x, sigma))
    num_large = len(CONFIG.latent_grid(SIDE, SIDE).boxes)
    # In the middle of the second step.
    with pytest.warns(UserWarning, match="tile 256"):
        got = run.sample(CONFIG, lambda calls, shape: calls > num_large + 2 and shape[1] > 32)
    assert torch.equal(got, expected)


def test_batches_shrink_before_tiles_do(run):
    expected = run.sample(CONFIG)
    with pytest.warns(UserWarning, match="with 4 tiles at once; going on with 2"):
        got = run.sample(replace(CONFIG, tile_batch=4), lambda calls, shape: shape[0] > 2)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert {shape[1] for shape in run.shapes} == {48}


def test_what_was_kept_to_save_time_goes_first(run):
    """The second step's second tile fails once: the same tile runs again, in the same size."""
    num = len(CONFIG.latent_grid(SIDE, SIDE).boxes)
    expected = run.sample(CONFIG)
    denoiser = TiledDenoiser(run.model, run.lr, *run.texts, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run.sample(CONFIG, lambda calls, shape: calls == num + 2, denoiser=denoiser)
    assert torch.equal(got, expected)
    assert denoiser.memories.num_bytes == 0 and not denoiser.memories.kept


def test_the_smallest_tile_that_does_not_fit_is_one_clear_error(run):
    with pytest.warns(UserWarning), pytest.raises(EAMError, match=r"memory for one tile of 240 pixels.*2 GiB"):
        run.sample(CONFIG, lambda calls, shape: True)
    assert [shape[1] for shape in run.shapes] == [48, 48, 30]


def test_a_picture_smaller_than_its_tile_is_cut_too(run):
    config = replace(CONFIG, tile=1024, overlap=256)
    with pytest.warns(UserWarning, match="one tile of 512 pixels; going on with tile 256 and overlap 64"):
        got = run.sample(config, lambda calls, shape: shape[1] > 32, side=64)
    assert torch.equal(got, run.sample(replace(config, tile=256, overlap=64), side=64))


def test_other_failures_pass(run):
    def fails(calls, shape):
        raise RuntimeError("expected scalar type Half")

    with pytest.raises(RuntimeError, match="scalar type"):
        run.sample(CONFIG, fails)


@pytest.mark.parametrize("name", [*SPECS, "own"])
def test_half_a_tile_has_the_overlap_that_such_a_tile_is_given(name):
    tile, overlap = (SPECS[name].tile, SPECS[name].overlap) if name in SPECS else (1536, 64)
    grid = TileGrid(height=1000, width=1000, tile=tile // 8, overlap=overlap // 8)
    half = grid.halved(32)
    assert half is not None
    assert (8 * half.tile, 8 * half.overlap) == (tile // 2, fitting_overlap(tile // 2, tile, overlap))


def test_tiles_are_halved_down_to_the_least_and_stay_aligned():
    grid, sides = TileGrid(height=640, width=640, tile=600, overlap=8, align=8), []
    while grid is not None:
        sides.append(grid.tile)
        grid = grid.halved(64)
    assert sides == [600, 304, 152, 80, 64]


# The autoencoder


def shrink_below(most: int):
    def fn(tiles):
        if tiles.shape[-1] > most:
            raise FAILURE
        return F.avg_pool2d(tiles, 8) + tiles.mean((2, 3), keepdim=True)  # so that tiles show in the result

    return fn


def test_the_autoencoder_goes_on_with_smaller_tiles():
    x = torch.randn(1, 3, 640, 800, generator=torch.Generator().manual_seed(0))
    given = {"overlap": 128, "scale": Fraction(1, 8)}
    with pytest.warns(UserWarning, match="tiles of 512 pixels in the autoencoder"):
        got = tiled_map(shrink_below(256), x, tile=512, **given)
    assert torch.equal(got, tiled_map(shrink_below(256), x, tile=256, overlap=64, scale=Fraction(1, 8)))
    with pytest.warns(UserWarning), pytest.raises(EAMError, match="tiles of 256 pixels"):
        tiled_map(shrink_below(0), x, tile=1024, **given)


def test_the_autoencoders_decoder_counts_in_pixels_of_the_picture():
    def fn(tiles):
        sides.append(tiles.shape[-1])
        raise FAILURE

    sides: list[int] = []
    with pytest.warns(UserWarning), pytest.raises(EAMError, match="tiles of 256 pixels"):
        tiled_map(fn, torch.zeros(1, 4, 200, 200), tile=128, overlap=16, scale=8)
    assert sides == [128, 64, 32]


# Telling


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (OutOfMemory("expected memory"), True),
        (RuntimeError("expected scalar type Half but found Float"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_counts_as_out_of_memory(error, is_it):
    assert is_out_of_memory(error) is is_it


def test_a_host_takes_the_last_error_for_its_own():
    assert issubclass(OutOfMemory, torch.OutOfMemoryError) and issubclass(OutOfMemory, EAMError)


# Batches that are measured


class Meter:
    """A device on which each tile takes `each` bytes while it runs."""

    def __init__(self, each: int, free: int):
        self.each, self.bytes_free, self.running, self.starts = each, free, 0, 0

    def start(self) -> None:
        self.starts += 1

    def peak(self) -> int:
        return self.each * self.running

    def free(self) -> int:
        return self.bytes_free


@pytest.mark.parametrize(("free", "most"), [(0, 1), (100, 1), (350, 2), (1000, 8), (10**6, 16)])
def test_auto_runs_one_tile_and_then_as_many_as_its_peak_says(free, most):
    meter, sizes = Meter(100, free), []

    def fn(tiles, boxes):
        sizes.append(len(boxes))
        meter.running = len(boxes)
        return tiles

    x, grid = torch.randn(1, 3, 256, 256), TileGrid(height=256, width=256, tile=32, overlap=8)
    batch = TileBatch(AUTO, most_auto=16, meter=meter)
    for _ in range(2):
        torch.testing.assert_close(tiled(fn, x, grid, tile_batch=batch), x)
    assert sizes[0] == 1 and set(sizes[1:3]) == {most} and max(sizes) == most
    assert meter.starts == 1, "measured again"


@pytest.mark.parametrize(
    ("device", "latent_pixels", "expected"),
    [
        ("cpu", 32**2, 8),
        ("cpu", 2 * 32**2, 4),
        ("cpu", 128**2, 1),
        ("cuda", 32**2, 16),
        ("cuda", 64**2, 4),
        ("cuda", 128**2, 1),
        ("cuda", 192**2, 1),
        ("mps", 32**2, 1),
    ],
)
def test_auto_goes_by_the_size_of_tiles(device, latent_pixels, expected):
    assert most_auto(torch.device(device), latent_pixels) == expected


@pytest.mark.parametrize("most", [1, 4])
def test_auto_without_a_meter_takes_the_most_at_once(most):
    sizes = []
    grid = TileGrid(height=64, width=64, tile=16, overlap=0)
    batch = TileBatch(AUTO, most_auto=most)
    tiled(lambda tiles, boxes: sizes.append(len(boxes)) or tiles, torch.randn(1, 3, 64, 64), grid, tile_batch=batch)
    assert set(sizes) == {most}


def test_where_auto_runs_one_tile_nothing_is_measured():
    meter = Meter(100, 10**6)
    TileBatch(AUTO, most_auto=1, meter=meter).run(lambda num: torch.zeros(num), 3)
    assert not meter.starts


def test_what_cannot_be_cut_into_tiles_fails_at_once():
    def predict(tiles, boxes):
        raise FAILURE

    grid = TileGrid(height=64, width=64, tile=64, overlap=16)
    run = TileRun(grid, TileBatch(1), None, may_cut=lambda: False)
    with pytest.raises(OutOfMemory, match="expected memory for one tile of 512 pixels"):
        run(predict, torch.zeros(1, 4, 64, 64), lambda: "step 1")
    assert run.grid is grid
