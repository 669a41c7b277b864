"""Captions in a real ComfyUI: by hand, by a stand-in model of random weights, and by a stand-in endpoint."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import requests
from comfy_host import ComfyServer, ExecutionError, Interrupted, Progress
from PIL import Image

sys.path.append(str(Path(__file__).parent))

from caption_endpoint import StandInEndpoint

WIDGETS = {
    "caption": "",
    "mode": "sa",
    "extra_instruction": "",
    "max_tokens": 64,
    "seed": 0,
    "tile_captions": False,
    "scale": 4.0,
    "tile": 0,
    "overlap": 0,
}
WHOLE = [0.0, 0.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def photo(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A picture of 48 x 32 pixels in the input folder."""
    path = tmp_path_factory.mktemp("photo") / "beach.png"
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((48, 32), Image.Resampling.BICUBIC).save(path)
    return server.upload_image(path)


@pytest.fixture
def endpoint() -> Iterator[StandInEndpoint]:
    with StandInEndpoint() as running:
        yield running


@pytest.fixture(scope="module")
def stand_in(server: ComfyServer, captioning_models: ModuleType) -> Path:
    """A model of random weights in ComfyUI's models/LLM."""
    return captioning_models.build_model("qwen2_5_vl", server.work_dir / "models" / "LLM" / "stand-in")


@pytest.fixture(scope="module")
def slow_stand_in(server: ComfyServer, captioning_models: ModuleType) -> Path:
    """One of random weights that takes its time."""
    return captioning_models.build_slow_model(server.work_dir / "models" / "LLM" / "slow")


class Pressed:
    """The button that interrupts, pressed once, and the time since then."""

    def __init__(self, server: ComfyServer) -> None:
        self.server, self.start = server, 0.0

    def once(self) -> None:
        if not self.start:
            self.start = time.monotonic()
            self.server.interrupt()

    def seconds(self) -> float:
        """Return how long ago it was pressed: the request, what the node was at, and the news of its end."""
        assert self.start, "never pressed"
        print(f"seconds from the interrupt to its end: {time.monotonic() - self.start:.2f}")
        return time.monotonic() - self.start


@pytest.fixture(autouse=True)
def forget(server: ComfyServer) -> None:
    """Make ComfyUI forget results, and the pack its captions."""
    free(server)
    shutil.rmtree(kept(server), ignore_errors=True)


def free(server: ComfyServer) -> None:
    body = {"free_memory": True, "unload_models": True}
    requests.post(f"{server.url}/free", json=body, timeout=60).raise_for_status()


def kept(server: ComfyServer) -> Path:
    return server.work_dir / "user" / "eam" / "captions"


def prompt_for(photo: str, *, loader: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """LoadImage -> EAM_SubjectCaption (with or without a captioner) -> what shows text."""
    inputs = {"image": ["1", 0], **WIDGETS, **changes}
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "2": {"class_type": "EAM_SubjectCaption", "inputs": inputs},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
    }
    if loader is not None:
        prompt["5"] = {"class_type": "EAM_LoadCaptioner", "inputs": {"name": "", **loader}}
        inputs["captioner"] = ["5", 0]
    return prompt


def run(server: ComfyServer, prompt: dict[str, Any], **options: Any) -> tuple[str, dict[str, Any]]:
    """Return caption and report, after a look at the text that the node shows."""
    outputs = server.run(prompt, **options)
    (caption,) = outputs["3"]["text"]
    assert outputs["2"]["text"] == [caption]
    return caption, json.loads(outputs["4"]["text"][0])


def at(endpoint: StandInEndpoint) -> dict[str, Any]:
    return {"source": endpoint.url, "name": "stand-in"}


# By hand


def test_typed_caption_needs_no_model(server: ComfyServer, photo: str) -> None:
    caption, report = run(server, prompt_for(photo, caption="  A blurry, tiny dog. \n"))
    # What a person types is not reworded.
    assert caption == "A blurry, tiny dog."
    fields = {"caption": caption, "focused": False, "focal_areas": []}
    assert report == fields | {"tiles": [{"box": WHOLE, **fields}]}


def test_without_text_and_captioner_the_caption_is_empty(server: ComfyServer, photo: str) -> None:
    for tiles in (False, True):
        caption, report = run(server, prompt_for(photo, tile_captions=tiles))
        assert caption == ""
        assert [tile["box"] for tile in report["tiles"]] == [WHOLE]


def test_captioner_is_not_even_opened_for_typed_text(server: ComfyServer, photo: str) -> None:
    broken = {"source": "LLM/nothing here"}
    assert run(server, prompt_for(photo, loader=broken, caption="A dog."))[0] == "A dog."
    with pytest.raises(ExecutionError, match="nothing here"):
        run(server, prompt_for(photo, loader=broken, caption=" "))


# A folder


def test_folder_answers_by_its_seed_and_once(server: ComfyServer, photo: str, stand_in: Path) -> None:
    prompt = prompt_for(photo, loader={"source": "LLM/stand-in"}, mode="da", max_tokens=16, seed=1)
    log = server.log_path
    before = log.read_text().count("Requested to load ModuleList")
    caption, _ = run(server, prompt)
    assert caption
    # ComfyUI's own memory management has loaded it.
    assert log.read_text().count("Requested to load ModuleList") == before + 1
    assert len(list(kept(server).rglob("*.json"))) == 1

    free(server)
    assert run(server, prompt)[0] == caption
    assert log.read_text().count("Requested to load ModuleList") == before + 1, "a kept answer needs no model"

    shutil.rmtree(kept(server))
    free(server)
    assert run(server, prompt)[0] == caption
    prompt["2"]["inputs"]["seed"] = 2
    assert run(server, prompt)[0] != caption


def test_folder_is_found_below_models_only(server: ComfyServer, photo: str, stand_in: Path, tmp_path: Path) -> None:
    models = server.work_dir / "models"
    (models / "text_encoders").mkdir(exist_ok=True)
    linked = models / "text_encoders" / "linked"
    shutil.copytree(stand_in, tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    texts = set()
    for source in ("LLM\\stand-in", str(stand_in), "text_encoders/linked", "linked", " LLM/../LLM/stand-in"):
        prompt = prompt_for(photo, loader={"source": source}, mode="da", max_tokens=16, seed=1)
        if ".." in source:
            with pytest.raises(ExecutionError, match="folders elsewhere cannot be named"):
                run(server, prompt)
        else:
            texts.add(run(server, prompt)[0])
    assert len(texts) == 1


@pytest.mark.parametrize(
    "source",
    [
        "../user",
        "..\\..\\{base}\\user",
        "LLM/../../user",
        "LLM\\..\\..\\user",
        "text_encoders/../../input",
        "{models}-2",
    ],
)
def test_folder_elsewhere_is_refused(server: ComfyServer, photo: str, stand_in: Path, source: str) -> None:
    """Each of them is there, with a model in it; only its place is wrong."""
    models = server.work_dir / "models"
    source = source.format(base=server.work_dir.name, models=models)
    elsewhere = (models / source.replace("\\", "/")).resolve()
    shutil.copytree(stand_in, elsewhere, dirs_exist_ok=True)
    with pytest.raises(ExecutionError, match=r"expected a folder below ComfyUI's models folder.* got '") as refused:
        run(server, prompt_for(photo, loader={"source": source}))
    assert "folders elsewhere cannot be named" in str(refused.value)


def test_missing_folder_is_named(server: ComfyServer, photo: str) -> None:
    with pytest.raises(ExecutionError, match="put the model at ") as refused:
        run(server, prompt_for(photo, loader={"source": "LLM/none"}))
    assert f"put the model at {server.work_dir / 'models' / 'LLM' / 'none'} or " in str(refused.value)
    assert str(server.work_dir / "models" / "text_encoders" / "LLM" / "none") in str(refused.value)


def test_interrupt_ends_the_reading_of_a_long_prompt(server: ComfyServer, photo: str, slow_stand_in: Path) -> None:
    """The model is so deep that its prompt of 1,600 tokens takes many seconds on two cores before the first token."""
    log, values, loaded = server.log_path, [], []
    before = log.read_text().count("Requested to load ModuleList")
    pressed = Pressed(server)

    def interrupt(progress: Progress) -> None:
        values.append(progress.value)
        if log.read_text().count("Requested to load ModuleList") > before:
            loaded.append(time.monotonic())
            if loaded[-1] - loaded[0] > 2:  # the pictures are prepared
                pressed.once()

    with pytest.raises(Interrupted, match="EAM_SubjectCaption"):
        run(server, prompt_for(photo, loader={"source": "LLM/slow"}, max_tokens=16), on_progress=interrupt)
    assert pressed.seconds() < 1
    assert set(values) == {0}, "the prompt was read to its end"


def test_no_source_is_refused(server: ComfyServer, photo: str) -> None:
    with pytest.raises(ExecutionError, match="got nothing; name one, or type a caption"):
        run(server, prompt_for(photo, loader={"source": " "}))


# An endpoint


def test_endpoint_gives_a_fitted_caption_with_its_focus(
    server: ComfyServer, photo: str, endpoint: StandInEndpoint
) -> None:
    endpoint.text = "The sea is calm. A blurry red boat lies on the beach."
    prompt = prompt_for(photo, loader=at(endpoint), extra_instruction="Name the boat.", seed=7)
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


def test_every_tile_has_its_caption(server: ComfyServer, photo: str, endpoint: StandInEndpoint) -> None:
    """48 x 32 pixels, enlarged 4 times, in tiles of 128 with an overlap of 64: two on the way."""
    seen: list[Progress] = []
    prompt = prompt_for(photo, loader=at(endpoint), tile_captions=True, tile=128, overlap=64)
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


def test_typed_caption_is_the_hint_of_tiles(server: ComfyServer, photo: str, endpoint: StandInEndpoint) -> None:
    prompt = prompt_for(photo, loader=at(endpoint), caption="Mine.", tile_captions=True, tile=128, overlap=64)
    caption, report = run(server, prompt)
    assert caption == "Mine."
    assert len(report["tiles"]) == len(endpoint.asked) == 2
    assert all("Mine." in json.dumps(request.fields["messages"][-1]) for request in endpoint.asked)


def test_too_small_tiles_are_refused(server: ComfyServer, photo: str, endpoint: StandInEndpoint) -> None:
    prompt = prompt_for(photo, loader=at(endpoint), tile_captions=True, tile=16)
    with pytest.raises(ExecutionError, match="expected tiles of at least 32 pixels"):
        run(server, prompt)
    assert not endpoint.asked


def test_interrupt_ends_a_slow_answer_at_once(server: ComfyServer, photo: str) -> None:
    pressed = Pressed(server)
    with StandInEndpoint(pause=30) as slow:

        def interrupt(progress: Progress) -> None:
            if slow.asked:
                pressed.once()

        with pytest.raises(Interrupted, match="EAM_SubjectCaption"):
            run(server, prompt_for(photo, loader=at(slow)), on_progress=interrupt)
        assert pressed.seconds() < 1
    with StandInEndpoint() as quick:
        assert run(server, prompt_for(photo, loader=at(quick)))[0] == quick.text


def test_pictures_stay_on_this_machine(server: ComfyServer, photo: str) -> None:
    with pytest.raises(ExecutionError, match=r"expected one on this machine .* got 'example\.com'"):
        run(server, prompt_for(photo, loader={"source": "http://example.com/v1"}))


# ComfyUI's own models


def test_clip_that_writes_no_text_is_refused(server: ComfyServer, photo: str) -> None:
    prompt = prompt_for(photo, loader={"source": "", "clip": ["6", 1]})
    loaded = {"checkpoint": "embedded (tiny, no text)", "control": "auto"}
    prompt["6"] = {"class_type": "EAM_LoadModel", "inputs": loaded}
    with pytest.raises(ExecutionError, match=r"expected a (ComfyUI whose CLIP models write text|CLIP of a vision)"):
        run(server, prompt)
