"""Captions in a real ComfyUI by a stand-in endpoint: of pictures and of their tiles, kept, and stopped at once."""

import json
from collections.abc import Iterator

import pytest
from caption_endpoint import StandInEndpoint
from caption_graph import WHOLE, Pressed, at, free, prompt_for, run
from comfy_host import ComfyServer, ExecutionError, Interrupted, Progress

pytestmark = pytest.mark.usefixtures("forget_captions")


@pytest.fixture
def endpoint() -> Iterator[StandInEndpoint]:
    with StandInEndpoint() as running:
        yield running


# An endpoint


def test_endpoint_gives_a_fitted_caption_with_its_focus(
    server: ComfyServer, beach: str, endpoint: StandInEndpoint
) -> None:
    endpoint.text = "The sea is calm. A blurry red boat lies on the beach."
    prompt = prompt_for(beach, loader=at(endpoint), extra_instruction="Name the boat.", seed=7)
    caption, report = run(server, prompt)
    assert caption == "A red boat lies on the beach. The sea is calm."
    assert report["focused"] is True
    assert report["focal_areas"] == [{"name": "red boat", "box": [0.1, 0.2, 0.6, 0.9]}]
    assert [(tile["box"], tile["caption"]) for tile in report["tiles"]] == [(WHOLE, caption)]
    (asked,) = endpoint.asked
    request = asked.fields
    assert (request["model"], request["max_tokens"], request["seed"]) == ("stand-in", 64, 7)
    assert "Name the boat." in json.dumps(request["messages"][0])
    free(server)
    assert run(server, prompt) == (caption, report)
    assert len(endpoint.asked) == 1, "asked again for what was kept"


def test_every_tile_has_its_caption(server: ComfyServer, beach: str, endpoint: StandInEndpoint) -> None:
    """48 x 32 pixels, enlarged 4 times, in tiles of 128 with an overlap of 64: two on the way."""
    seen: list[Progress] = []
    prompt = prompt_for(beach, loader=at(endpoint), tile_captions=True, tile=128, overlap=64)
    caption, report = run(server, prompt, on_progress=seen.append)
    assert caption == "A red boat lies on the beach."
    boxes = [tile["box"] for tile in report["tiles"]]
    assert boxes == [[0.0, 0.0, 0.6667, 1.0], [0.3333, 0.0, 1.0, 1.0]]
    captions = [tile["caption"] for tile in report["tiles"]]
    assert captions == ["A red boat lies on the beach number 1.", "A red boat lies on the beach number 2."]
    assert caption in json.dumps(endpoint.asked[1].fields["messages"][-1]), "a tile is told what the whole shows"

    steps = [each.value for each in seen if each.node_type == "EAM_SubjectCaption"]
    assert {each.maximum for each in seen if each.node_type == "EAM_SubjectCaption"} >= {3 * 64}
    assert steps == sorted(steps)
    assert any(0 < step < 64 for step in steps), "no progress within a caption"
    assert any(64 < step < 128 for step in steps), "no progress within a tile"


def test_typed_caption_is_the_hint_of_tiles(server: ComfyServer, beach: str, endpoint: StandInEndpoint) -> None:
    prompt = prompt_for(beach, loader=at(endpoint), caption="Mine.", tile_captions=True, tile=128, overlap=64)
    caption, report = run(server, prompt)
    assert caption == "Mine."
    assert len(report["tiles"]) == len(endpoint.asked) == 2
    assert all("Mine." in json.dumps(request.fields["messages"][-1]) for request in endpoint.asked)


def test_too_small_tiles_are_refused(server: ComfyServer, beach: str, endpoint: StandInEndpoint) -> None:
    prompt = prompt_for(beach, loader=at(endpoint), tile_captions=True, tile=16)
    with pytest.raises(ExecutionError, match="expected tiles of at least 32 pixels"):
        run(server, prompt)
    assert not endpoint.asked


def test_interrupt_ends_a_slow_answer_at_once(server: ComfyServer, beach: str) -> None:
    pressed = Pressed(server)
    with StandInEndpoint(pause=30) as slow:

        def interrupt(progress: Progress) -> None:
            if slow.asked:
                pressed.once()

        with pytest.raises(Interrupted, match="EAM_SubjectCaption"):
            run(server, prompt_for(beach, loader=at(slow)), on_progress=interrupt)
        assert pressed.seconds() < 1
    with StandInEndpoint() as quick:
        assert run(server, prompt_for(beach, loader=at(quick)))[0] == quick.text


def test_pictures_stay_on_this_machine(server: ComfyServer, beach: str) -> None:
    with pytest.raises(ExecutionError, match=r"expected one on this machine .* got 'example\.com'"):
        run(server, prompt_for(beach, loader={"source": "http://example.com/v1"}))
