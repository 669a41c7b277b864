"""Prompts of single tiles in a real ComfyUI, on a random-weight stand-in of SD3's layout whose text matters."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_host import ComfyServer, ExecutionError
from tile_prompts_graph import IMAGE_SIZE, SIDE, TILE, Graph, calls, grid, places, run, tile_prompts_host
from torch import Tensor

from eam_core.tiling import TileGrid


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with tile_prompts_host(tmp_path_factory.mktemp("host")) as running:
        yield running


TILES = [(place, f"tile number {number}") for number, place in enumerate(places(grid(SIDE)))]
LENGTHS = [(place, "word " * (3 + number % 3) + str(number)) for number, (place, _) in enumerate(TILES)]


# What a tile's prompt is


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_tiles_with_the_global_prompt_change_nothing(host: ComfyServer, strength: float, cfg: float) -> None:
    same = [(place, "the photo") for place, _ in TILES]
    expected = run(host, "the photo", cfg=cfg)
    assert (run(host, "the photo", same, strength, cfg=cfg) - expected).abs().max() < 1e-4 * expected.std()


def test_strength_zero_gives_and_costs_what_no_tile_prompts_do(host: ComfyServer, tmp_path: Path) -> None:
    without, zero, half, one = (
        run(host, "the photo", tiles, strength, log=tmp_path / name)
        for name, tiles, strength in (
            ("no", None, 0.5),
            ("zero", TILES, 0.0),
            ("half", TILES, 0.5),
            ("one", TILES, 1.0),
        )
    )
    assert torch.equal(without, zero)
    assert (without - one).abs().mean() > 0.1 and (half - one).abs().mean() > 0.1
    # Nine tiles, two steps; a call of two prompts of one length counts as two.
    counts = {name: sum(call["tiles"] for call in calls(tmp_path / name)) for name in ("no", "zero", "half", "one")}
    assert counts == {"no": 18, "zero": 18, "half": 36, "one": 18}


def test_tiles_with_prompts_of_their_own_overlap_in_every_step(host: ComfyServer) -> None:
    """Different prompts leave borders that only the blend of every step evens out."""
    # Of the picture's usual size, tiles that only meet would be those that overlap.
    six: dict[str, Any] = {"graph": {"scale": 6.0}, "tile": 96}
    wanted = [{"blend_every_step": every} for every in (True, False)]
    every, last = (run(host, "the photo", TILES, 1.0, **six, **blend) for blend in wanted)
    assert torch.equal(every, last)
    every, last = (run(host, "the photo", **six, **blend) for blend in wanted)
    assert not torch.equal(every, last)


@pytest.mark.parametrize("tile", [TILE, 8 * SIDE])
def test_prediction_is_the_weighted_average(host: ComfyServer, tile: int) -> None:
    """One step of Euler ends at the prediction; one caption for the whole picture, in nine tiles or in one."""
    settings: dict[str, Any] = {"steps": 1, "cfg": 2.0, "tile": tile}
    whole, own = run(host, "the photo", **settings), run(host, "a red fox", **settings)
    assert (whole - own).abs().mean() > 0.1
    for strength in (0.25, 1.0):
        mixed = run(host, "the photo", [((0, 0, 1, 1), "a red fox")], strength, **settings)
        assert torch.allclose(mixed, (1 - strength) * whole + strength * own, atol=1e-4)


def test_areas_strengths_and_ranges_of_the_positive_prompt_stay(host: ComfyServer) -> None:
    def sampled(text: str, in_area: str, tiles: Any = None, strength: float = 0.5, **changes: Any) -> Tensor:
        graph = Graph(host)
        return graph.sample(graph.combined(text, in_area), tiles, strength, **changes)

    fox = [((0, 0, 1, 1), "a red fox")]
    assert torch.allclose(sampled("the photo", "a tree", fox, 1.0), sampled("a red fox", "a red fox"), atol=1e-4)
    whole, own = sampled("the photo", "a tree", steps=1), sampled("a red fox", "a red fox", steps=1)
    mixed = sampled("the photo", "a tree", fox, 0.25, steps=1)
    assert torch.allclose(mixed, 0.75 * whole + 0.25 * own, atol=1e-4)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_a_default_prompt_keeps_what_areas_leave_free(host: ComfyServer, strength: float) -> None:
    """Core gives such an entry the rest of the picture, whatever its strength; it stays the global prompt's."""

    def sampled(in_area: str, tiles: Any = None) -> Tensor:
        graph = Graph(host)
        area = {"width": 64, "height": 128, "x": 64, "y": 0, "strength": 0.5}
        part = graph.link("ConditioningSetArea", conditioning=graph.text(in_area), **area)
        positive = graph.link("ConditioningSetDefaultCombine", cond=part, cond_DEFAULT=graph.text("the photo"))
        return graph.sample(positive, tiles, strength, steps=1)

    whole, own = sampled("a tree"), sampled("a red fox")
    mixed = sampled("a tree", [((0, 0, 1, 1), "a red fox")])
    assert (whole - own).abs().mean() > 0.02
    assert torch.allclose(mixed, (1 - strength) * whole + strength * own, atol=1e-4)


def test_encodings_for_parts_of_the_sampling_stay_apart(host: ComfyServer) -> None:
    """A CLIP with scheduled hooks gives several encodings of one text, each with its range."""
    graph = Graph(host)
    tiles = graph.link("Scheduled", early=graph.text("a red fox"), late=graph.text("a tree"))
    scheduled = graph.sample(graph.text("the photo"), tiles, 1.0, steps=4)
    graph = Graph(host)
    halves = [
        graph.link("ConditioningSetTimestepRange", conditioning=graph.text(text), start=start, end=end)
        for text, start, end in (("a red fox", 0.0, 0.5), ("a tree", 0.5, 1.0))
    ]
    positive = graph.link("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1])
    assert torch.allclose(scheduled, graph.sample(positive, steps=4), atol=1e-4)
    assert (scheduled - run(host, "a red fox", steps=4)).abs().mean() > 0.05


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_control_and_fidelity_reach_tile_prompts(host: ComfyServer, tmp_path: Path, strength: float) -> None:
    logs = [tmp_path / name for name in ("control", "none")]
    by_control, alone = (
        run(host, "the photo", TILES, strength, log=log, graph={"control_scale": scale})
        for log, scale in zip(logs, (1.0, 0.0), strict=True)
    )
    assert (by_control - alone).abs().mean() > 0.05
    assert all("eam_lr" in call["conds"] for call in calls(logs[0]))
    faithful = run(host, "the photo", TILES, strength, fidelity=1.0, steps=1)
    start = Graph(host)
    again = start.sample(start.text("another photo"), [(place, "else") for place, _ in TILES], fidelity=1.0, steps=1)
    # The first step's prediction is the low-resolution picture itself, whatever the prompts.
    assert torch.allclose(faithful, again, atol=1e-4)


def test_image_prompt_reaches_tile_prompts(host: ComfyServer, tmp_path: Path) -> None:
    results = []
    for seed in (1, 2):
        graph = Graph(host)
        inputs = {"control": graph.control, "clip_vision_output": graph.link("Seen", size=IMAGE_SIZE, seed=seed)}
        graph.model = graph.link("EAM_ImagePrompt", model=graph.model, **inputs, strength=1.0, start=0.0, end=1.0)
        results.append(graph.sample(graph.text("the photo"), TILES, 1.0, log=tmp_path / f"{seed}"))
        assert all("eam_image" in call["conds"] for call in calls(tmp_path / f"{seed}"))
    assert (results[0] - results[1]).abs().mean() > 0.01


# Which tile has which


def test_a_prompt_changes_its_tile_and_not_the_far_ones(host: ComfyServer) -> None:
    first, *others = TILES
    before, after = (run(host, "the photo", [(first[0], text), *others]) for text in (first[1], "a red fox"))
    changed = (before - after).abs().amax(dim=(0, 1))
    assert changed[:4, :4].min() > 1e-3
    # The first tile ends at 8; in the second step its neighbours carry the change to where they end, at 12.
    assert changed[12:].max() == 0 and changed[:, 12:].max() == 0


def test_grids_need_not_be_equal(host: ComfyServer) -> None:
    """A tile takes the place that it overlaps most; of equal ones the smallest, then the nearest."""
    quarters = [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]
    names = [f"quarter {number}" for number in range(4)]
    # The tiles in the corners lie in a quarter; those between lie in two or four by halves, and the first is taken.
    taken = [0, 0, 1, 0, 0, 1, 2, 2, 3]
    expected = run(host, "the photo", [(place, names[index]) for (place, _), index in zip(TILES, taken, strict=True)])
    whole = ((0, 0, 1, 1), "the whole")
    assert torch.equal(run(host, "the photo", list(zip(quarters, names, strict=True))), expected)
    mixed = run(host, "the photo", [whole, (quarters[3], names[3])], 1.0)
    only_whole = run(host, "the photo", [whole], 1.0)
    assert torch.equal(mixed[..., :4, :4], only_whole[..., :4, :4])
    assert (mixed - only_whole)[..., 12:, 12:].abs().min() > 1e-5
    corner = run(host, "the photo", [((0, 0, 0.25, 0.25), "a red fox")], steps=1)
    assert torch.equal(corner[..., 8:, 8:], run(host, "the photo", steps=1)[..., 8:, 8:])


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize(("tiles", "own"), [(TILES, {3: 9}), (LENGTHS, {4: 3, 5: 3, 6: 3})])
def test_tile_batch_changes_nothing(host: ComfyServer, tmp_path: Path, tiles: Any, own: Any, strength: float) -> None:
    logs = [tmp_path / "one", tmp_path / "four"]
    one, four = (
        run(host, "the photo", tiles, strength, cfg=2.0, steps=1, tile_batch=size, log=log)
        for size, log in zip((1, 4), logs, strict=True)
    )
    assert torch.allclose(one, four, atol=1e-4)
    # The global prompt has two words, the negative one three; a text repeated to another's length would show here.
    expected = Counter(own) + Counter({3: 9, 2: 9 if strength < 1 else 0})
    for log in logs:
        seen = Counter()
        for call in calls(log):
            seen[call["tokens"]] += call["tiles"]
        assert seen == expected
    if tiles is TILES:
        assert max(call["tiles"] for call in calls(logs[1])) == 8  # four tiles, own and negative in one call


def test_every_picture_of_a_batch_gets_the_prompts(host: ComfyServer) -> None:
    graph = Graph(host)
    graph.image = graph.link("ImageBatch", image1=graph.image, image2=graph.image)
    both = graph.sample(graph.text("the photo"), LENGTHS, steps=1, tile_batch=4)
    alone = run(host, "the photo", LENGTHS, steps=1)
    assert len(both) == 2 and torch.allclose(both[:1], alone, atol=1e-4)
    assert not torch.allclose(both[1:], alone, atol=1e-1)  # another noise


# Borders


def border_ratio(picture: Tensor, grid: TileGrid) -> float:
    """Return the mean gradient across borders of tiles over that elsewhere, as tests/bench/seams.py does."""
    profile = torch.stack([turned.diff(dim=-1).abs().mean((0, 1, 2)) for turned in (picture, picture.mT)]).mean(0)
    edges = {edge for left in grid.lefts for edge in (left, left + grid.tile_width)} - {0, grid.width}
    at = torch.zeros(len(profile), dtype=torch.bool)
    at[[edge - 1 for edge in edges]] = True
    return (profile[at].mean() / profile[~at].mean()).item()


@pytest.mark.parametrize("sampling", [{"steps": 1, "start_sigma": 0.05}, {"steps": 6, "start_sigma": 1.0}])
@pytest.mark.parametrize("control_scale", [0.0, 1.0])
def test_borders_of_tiles_show_no_more_than_with_one_prompt(
    host: ComfyServer, sampling: dict[str, Any], control_scale: float
) -> None:
    """With one prompt in the same tiles, that is; two prompts cut hard along the borders come out far above."""
    tiles = TileGrid(height=48, width=48, tile=16, overlap=4)
    settings: dict[str, Any] = {"tile": 128, "overlap": 32, **sampling}
    settings["graph"] = {"base": "blind", "side": 96, "control_scale": control_scale}
    one, other = (run(host, text, **settings) for text in ("the photo", "tile number 1"))
    single = max(border_ratio(one, tiles), border_ratio(other, tiles))
    assert single < 1.15
    bound = single + 0.02
    prompts = [(place, f"tile number {number}") for number, place in enumerate(places(tiles))]
    for strength in (0.5, 1.0):
        assert border_ratio(run(host, "the photo", prompts, strength, **settings), tiles) < bound
    fields = torch.bucketize(torch.arange(48), torch.tensor(tiles.lefts), right=True)
    checks = (fields[:, None] + fields) % 2
    assert border_ratio(one * checks + other * (1 - checks), tiles) > 1.5 * bound


# The node that encodes


def test_equal_captions_are_encoded_once(host: ComfyServer) -> None:
    quarters = [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.25, 0.0, 0.75, 1.0]]

    def found(*texts: str) -> dict[str, Any]:
        graph = Graph(host)
        shown = graph.add("Objects", tiles=graph.tiles(list(zip(quarters, texts, strict=True))))
        return host.run(graph.prompt)[shown]["found"][0]

    before = found("warm", "warm", "warm")["encoded"]
    seen = found("a cat", "two grey dogs", "a cat")
    assert seen["boxes"] == quarters and seen["tokens"] == [2, 3, 2]
    assert seen["shared"][0] == seen["shared"][2] != seen["shared"][1]
    assert seen["encoded"] == before + 2


def test_no_captions_are_no_tile_prompts(host: ComfyServer) -> None:
    assert torch.equal(run(host, "the photo", [], 1.0), run(host, "the photo"))


def test_the_embedded_model_runs_and_says_that_captions_have_no_effect(host: ComfyServer) -> None:
    def sampled(tiles: Any, strength: float = 0.5) -> Tensor:
        graph = Graph(host)
        graph.clip = graph.embedded_clip
        return graph.sample(graph.text("the photo"), tiles, strength)

    start = host.log_path.stat().st_size
    # Own and global prompt are the same null text; their average differs by rounding alone.
    assert torch.allclose(sampled(TILES), sampled(None), atol=1e-4)
    assert torch.equal(sampled(TILES, 1.0), sampled(None))
    said = host.log_path.read_bytes()[start:].decode(errors="replace")
    assert "the embedded model knows no text; tile captions have no effect" in said


def test_encoders_that_cannot_serve_are_named_in_a_sentence(host: ComfyServer) -> None:
    fox = [((0, 0, 1, 1), "a red fox")]
    graph = Graph(host)
    graph.add("Objects", tiles=graph.tiles(fox, graph.link("NoCLIP")))
    message = "EAM_EncodeTileCaptions: expected SD3's text encoders for tile prompts, got none; connect"
    with pytest.raises(ExecutionError, match=message):
        host.run(graph.prompt)
    graph = Graph(host)
    positive, graph.clip = graph.text("the photo"), graph.link("TextCLIP", width=48)
    message = "EAM_TiledSampler: expected tile prompts of 64 channels like the positive conditioning, got 48; encode"
    with pytest.raises(ExecutionError, match=message):
        graph.sample(positive, fox)
