"""EAM_TiledSampler in a real ComfyUI: core's sampler in other words, tiles, guidance, progress and interrupts."""

from typing import Any

import pytest
import torch
from comfy_host import ComfyServer, Interrupted, Progress
from graphs import TILED, Graph, applied, fresh, photo, refused
from safetensors.torch import load_file


def test_core_sampler_and_one_tile_give_the_same(graph: Graph) -> None:
    node = applied(graph)
    by_core = graph.latents(graph.k_sampler(node, cfg=2.0)[0])
    assert torch.equal(graph.latents(graph.tiled_sampler(node, cfg=2.0)[0]), by_core)
    assert by_core.shape == (1, 16, 12, 16) and by_core.isfinite().all()


@pytest.mark.parametrize("num_variants", [1, 2])
def test_tile_batch_changes_nothing(graph: Graph, num_variants: int) -> None:
    node = applied(graph)
    latent = graph.add("RepeatLatentBatch", samples=node[3], amount=num_variants)[0]
    one, four, untiled = (
        graph.latents(graph.tiled_sampler(node, latent=latent, cfg=2.0, **tiling)[0])
        for tiling in (TILED, TILED | {"tile_batch": 4}, {})
    )
    assert len(one) == num_variants
    assert torch.allclose(one, four, atol=1e-4)
    assert not torch.allclose(one, untiled, atol=1e-2)


@pytest.mark.parametrize("kind", ["sampler_name", "scheduler"])
def test_every_sampler_and_scheduler_works(graph: Graph, kind: str) -> None:
    node = applied(graph)
    options = graph.server.object_info()["EAM_TiledSampler"]["input"]["required"][kind][1]["options"]
    assert len(options) > 5
    saved = {
        name: graph.add(
            "SaveLatent",
            samples=graph.tiled_sampler(node, start_sigma=0.6, **{"steps": 3, kind: name})[0],
            filename_prefix=name,
        )
        for name in options
    }
    outputs = graph.server.run(graph.prompt)
    for name, node_id in saved.items():
        found = outputs[node_id]["latents"][0]
        path = graph.server.work_dir / "output" / found["subfolder"] / found["filename"]
        assert load_file(path)["latent_tensor"].isfinite().all(), name


@pytest.mark.parametrize(("scheduler", "start_sigma"), [("sgm_uniform", 0.5005), ("simple", 0.5)])
def test_start_sigma_is_cores_denoise_in_other_words(graph: Graph, scheduler: str, start_sigma: float) -> None:
    node = applied(graph)
    expected = graph.latents(graph.k_sampler(node, scheduler=scheduler, denoise=0.5)[0])
    sampled = graph.tiled_sampler(node, scheduler=scheduler, start_sigma=start_sigma)
    assert torch.allclose(graph.latents(sampled[0]), expected, atol=1e-4)


def test_fidelity_pulls_towards_the_photo(graph: Graph) -> None:
    node = applied(graph)
    lr = graph.latents(node[3])
    free, faithful = (graph.latents(graph.tiled_sampler(node, fidelity=f, **TILED)[0]) for f in (0.0, 1.0))
    assert (faithful - lr).abs().mean() < 0.97 * (free - lr).abs().mean()


def test_cfg_end_changes_guidance_on_the_way(graph: Graph) -> None:
    # Both prompts are the same nothing here; the negative loses its picture, so that guidance has something to do.
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    bare = graph.add("CLIPTextEncode", text="", clip=loaded[1])[0]
    flat, falling, off = (
        graph.latents(graph.tiled_sampler(node, negative=bare, **scales)[0])
        for scales in ({"cfg": 3.0}, {"cfg": 3.0, "cfg_end": 1.0}, {"cfg": 1.0})
    )
    assert not torch.allclose(flat, falling, atol=1e-3)
    assert (falling - off).abs().mean() < (flat - off).abs().mean()


def test_cfg_acts_only_in_its_window(graph: Graph) -> None:
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    bare = graph.add("CLIPTextEncode", text="", clip=loaded[1])[0]
    # Two steps, at sigma 1 and 0.5: half of the sampling has passed at the second.
    windows = ({}, {"cfg_end_percent": 0.4}, {"cfg_start_percent": 0.6}, {"cfg": 1.0})
    always, first, none, off = (
        graph.latents(graph.tiled_sampler(node, **{"negative": bare, "cfg": 3.0, "start_sigma": 1.0, **window})[0])
        for window in windows
    )
    assert torch.equal(none, off)
    assert not torch.allclose(first, off, atol=1e-3) and not torch.allclose(first, always, atol=1e-3)


def test_a_cfg_window_that_holds_nothing_is_refused(graph: Graph) -> None:
    window = {"cfg_start_percent": 0.5, "cfg_end_percent": 0.5}
    refused(
        graph,
        "expected cfg_start_percent below cfg_end_percent, got 0.5",
        graph.tiled_sampler(applied(graph), **window)[0],
    )


def test_interrupted_run_leaves_nothing_behind(server: ComfyServer, photos: None) -> None:
    def build() -> tuple[Graph, Any]:
        graph = fresh(server)
        return graph, graph.tiled_sampler(applied(graph), steps=8, **TILED)[0]

    def stop(progress: Progress) -> None:
        if progress.node_type == "EAM_TiledSampler" and progress.value >= 3:
            assert progress.value < progress.maximum
            server.interrupt()

    graph, sampled = build()
    with pytest.raises(Interrupted):
        graph.latents(sampled, on_progress=stop)
    again = graph.latents(sampled)
    graph, sampled = build()
    assert torch.equal(graph.latents(sampled), again)


def test_progress_counts_steps_times_tiles(graph: Graph) -> None:
    seen: list[tuple[float, float]] = []

    def note(progress: Progress) -> None:
        if progress.node_type == "EAM_TiledSampler" and progress.maximum > 2:
            seen.append((progress.value, progress.maximum))

    # 16 x 12 latents in tiles of 8 with an overlap of 4: three by two tiles, two steps.
    sampled = graph.tiled_sampler(applied(graph), seed=11, blend_every_step=True, **TILED)
    graph.latents(sampled[0], on_progress=note)
    assert {maximum for _, maximum in seen} == {12}
    assert seen == sorted(seen) and seen[-1][0] == 12


def test_samplers_that_never_call_at_the_last_level_overlap_throughout(graph: Graph) -> None:
    def sampled(name: str, every: bool) -> torch.Tensor:
        settings = {"seed": 11, "steps": 3, "sampler_name": name, "blend_every_step": every, "start_sigma": 1.0}
        tiles = {"tile": 96, "overlap": 32}  # 32 x 24 latents: three by two tiles that just meet, then four by three
        return graph.latents(graph.tiled_sampler(applied(graph, scale=8.0), **tiles, **settings)[0])

    assert torch.equal(sampled("dpm_fast", False), sampled("dpm_fast", True))
    assert not torch.equal(sampled("heun", False), sampled("heun", True))
