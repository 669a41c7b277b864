"""Tiled runs in the graph: LR keys and values kept and never mixed up, memory that runs out, values not finite."""

from collections.abc import Iterator
from typing import Any

import pytest
import tile_prompts_graph
import torch
from comfy_host import ComfyServer, ExecutionError, Interrupted
from tile_runs_graph import Run, error, tile_runs_host

SAME = 1e-6  # float32, the same sums in other batches
TILES = 9  # 3 x 3


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with tile_runs_host(tmp_path_factory.mktemp("lr_memory")) as running:
        yield running


def both(run: Run, **changes: Any) -> torch.Tensor:
    """Sample with and without memory; the pictures must be the same."""
    without = run(most=0, **changes)
    assert run.remembered == [], "nothing may be kept, but something was computed for it"
    kept = run(**changes)
    assert error(kept, without) < SAME, error(kept, without)
    return kept


@pytest.mark.parametrize("control", ["self", "cross"])
def test_each_tile_is_computed_once_for_all_steps_and_both_halves(host: ComfyServer, control: str) -> None:
    run = Run(host, control, steps=3)
    both(run)
    assert run.remembered == [1] * TILES
    assert sum(one["num"] for one in run.passes) == 3 * 2 * TILES


def test_what_changes_with_the_noise_is_not_kept(host: ComfyServer) -> None:
    run = Run(host, "joint")
    both(run)
    assert run.remembered == []


@pytest.mark.parametrize("tiling", [{"tile_batch": 4}, {"tile": 128}], ids=["batches", "one tile"])
def test_batches_and_a_single_tile(host: ComfyServer, tiling: dict[str, Any]) -> None:
    run = Run(host, "cross", **tiling)
    both(run)
    assert sum(run.remembered) == (TILES if "tile_batch" in tiling else 1)
    assert len(run.remembered) == (3 if "tile_batch" in tiling else 1)


def test_another_picture_strength_and_text_are_not_mixed_up(host: ComfyServer) -> None:
    run = Run(host, "self")
    plain = both(run)
    weaker = both(run, graph={"control_scale": 0.5})
    early = both(run, graph={"end": 0.5}, steps=3)
    other = both(Run(host, "self", side=80, tile=320, overlap=64))
    text = both(run, text="something else")
    for one in (weaker, text):
        assert error(one, plain) > 0.01
    assert early.isfinite().all() and other.shape[-1] == 80 * 4 // 8
    assert torch.equal(run(), plain), "the same once more, after all of these"


def test_prompts_of_tiles_share_the_memory(host: ComfyServer) -> None:
    places = tile_prompts_graph.places(tile_prompts_graph.grid(tile_prompts_graph.SIDE))
    tiles = [(place, f"part {number % 2}") for number, place in enumerate(places)]
    for size in (1, 4):
        run = Run(host, "self", tiles=tiles, tile_batch=size)
        both(run)
        assert sum(run.remembered) == TILES


def test_little_memory_keeps_some_tiles(host: ComfyServer) -> None:
    """Two blocks of 128 channels for the 16 tokens of a tile, keys and values in float32: 32 KiB."""
    run = Run(host, "self", steps=3)
    expected = run()
    got = run(most=4 * 32 * 1024)
    assert error(got, expected) < SAME
    assert {one["num"] for one in run.passes} == {2}
    # Four tiles are kept; the others' halves still share what each pass computes.
    assert run.remembered == [1] * (TILES + 2 * (TILES - 4))


def test_an_interrupted_run_leaves_nothing(host: ComfyServer) -> None:
    run = Run(host, "self")
    expected = run()
    with pytest.raises(Interrupted):
        run({"interrupt": 5})
    assert torch.equal(run(), expected)
    assert run.remembered == [1] * TILES


def test_memory_that_runs_out_takes_what_was_kept(host: ComfyServer) -> None:
    run = Run(host, "self", cfg=1.0)
    expected = run()
    got = run({"once": TILES + 3})
    assert error(got, expected) < SAME
    assert run.remembered == [1] * TILES, "more was kept after memory had run out"
    assert set(run.sides()) == {8}
    assert "out of memory" not in run.said


def test_layers_that_are_compiled(host: ComfyServer) -> None:
    probe = {"backend": "aot_eager"}
    run = Run(host, "self", patches=[("TestCompiled", probe)])
    assert error(run(), Run(host, "self")()) < 1e-5
    assert run.remembered == [1] * TILES


# Memory that runs out, and values that are not finite


def large(host: ComfyServer, **changes: Any) -> Run:
    """A result of 40 x 40 latents in one tile."""
    return Run(host, side=80, **{"tile": 320, "overlap": 64, "cfg": 1.0} | changes)


def test_a_tile_that_does_not_fit_gives_exactly_the_run_with_smaller_tiles(host: ComfyServer) -> None:
    run = large(host)
    whole, expected = run(), run(tile=256, overlap=64)
    assert error(whole, expected) > 1e-3
    assert torch.equal(run({"larger": 32}), expected)
    assert run.sides().count(40) == 1, "the tile that did not fit was tried again"
    assert run.said.count("EAM: out of memory with one tile of 320 pixels; going on with tile 256 and overlap 64") == 1


def test_batches_shrink_first(host: ComfyServer) -> None:
    run = Run(host, "joint", cfg=1.0, tile_batch=4)
    expected = run()
    assert error(run({"more": 2}), expected) < SAME
    assert run.sides() == [8] * len(run.sides())
    assert run.said.count("out of memory with 4 tiles at once; going on with 2") == 1


def test_the_smallest_tile_that_does_not_fit_is_one_sentence(host: ComfyServer) -> None:
    run = large(host)
    with pytest.raises(ExecutionError, match=r"memory for one tile of 192 pixels, got: tried to allocate 2 GiB"):
        run({"larger": 0})
    assert "unloading all loaded models" in run.said
    assert run().isfinite().all()


def test_a_tile_that_is_not_finite_is_computed_in_float32(host: ComfyServer) -> None:
    run = Run(host, base="half", cfg=1.0)
    healthy = run()
    assert {one["dtype"] for one in run.passes} == {"torch.bfloat16"}
    mended = run({"nan": [2, TILES + 2]})
    assert [one["dtype"] for one in run.passes].count("torch.float32") == 1
    assert 0 < error(mended, healthy) < 0.05, error(mended, healthy)
    assert run.said.count("gave NaN or infinite values and was computed again in float32") == 1
    assert "the tile of 64 x 64 pixels at 32, 0 at step 1 of 2 (sigma 1.000)" in run.said
    assert torch.equal(run(), healthy), "the weights are not what they were"


def test_a_model_that_only_float32_can_run(host: ComfyServer) -> None:
    run = Run(host, base="half")
    healthy = run()
    mended = run({"nan_half": True}, tile_batch=4)
    assert 0 < error(mended, healthy) < 0.05, error(mended, healthy)


@pytest.mark.parametrize("base", ["random", "half"])
def test_what_float32_cannot_mend_is_named(host: ComfyServer, base: str) -> None:
    run = Run(host, base=base, cfg=1.0)
    tile = r"the tile of 64 x 64 pixels at 0, 0 at step 1 of 2 \(sigma 1.000\)"
    also = ", in float32 too" if base == "half" else ""
    with pytest.raises(ExecutionError, match=f"expected finite values for {tile}, got NaN or infinite ones{also};"):
        run({"nan": [*range(100)]})


def test_a_chosen_batch_on_a_cpu_is_of_as_many_tiles_as_pay(host: ComfyServer) -> None:
    run = Run(host, "joint", cfg=1.0)
    expected = run()
    assert {one["num"] for one in run.passes} == {1}
    assert error(run(tile_batch=0), expected) < SAME
    assert max(one["num"] for one in run.passes) == TILES, "128 tiles of 64 pixels would be few enough"
