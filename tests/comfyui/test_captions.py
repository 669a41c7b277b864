"""Captions in a real ComfyUI by hand, by a stand-in model of random weights, or by none that can."""

import shutil
import time
from pathlib import Path
from types import ModuleType

import pytest
from caption_graph import WHOLE, Pressed, free, kept, prompt_for, run
from comfy_host import ComfyServer, ExecutionError, Interrupted, Progress

pytestmark = pytest.mark.usefixtures("forget_captions")


@pytest.fixture(scope="module")
def stand_in(server: ComfyServer, captioning_models: ModuleType) -> Path:
    """A model of random weights in ComfyUI's models/LLM."""
    return captioning_models.build_model("qwen2_5_vl", server.work_dir / "models" / "LLM" / "stand-in")


@pytest.fixture(scope="module")
def slow_stand_in(server: ComfyServer, captioning_models: ModuleType) -> Path:
    """One of random weights that takes its time."""
    return captioning_models.build_slow_model(server.work_dir / "models" / "LLM" / "slow")


# By hand


def test_typed_caption_needs_no_model(server: ComfyServer, beach: str) -> None:
    caption, report = run(server, prompt_for(beach, caption="  A blurry, tiny dog. \n"))
    # What a person types is not reworded.
    assert caption == "A blurry, tiny dog."
    fields = {"caption": caption, "focused": False, "focal_areas": []}
    assert report == fields | {"tiles": [{"box": WHOLE, **fields}]}


def test_without_text_and_captioner_the_caption_is_empty(server: ComfyServer, beach: str) -> None:
    for tiles in (False, True):
        caption, report = run(server, prompt_for(beach, tile_captions=tiles))
        assert caption == ""
        assert [tile["box"] for tile in report["tiles"]] == [WHOLE]


def test_captioner_is_not_even_opened_for_typed_text(server: ComfyServer, beach: str) -> None:
    broken = {"source": "LLM/nothing here"}
    assert run(server, prompt_for(beach, loader=broken, caption="A dog."))[0] == "A dog."
    with pytest.raises(ExecutionError, match="nothing here"):
        run(server, prompt_for(beach, loader=broken, caption=" "))


# A folder


def test_folder_answers_by_its_seed_and_once(server: ComfyServer, beach: str, stand_in: Path) -> None:
    prompt = prompt_for(beach, loader={"source": "LLM/stand-in"}, mode="da", max_tokens=16, seed=1)
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


def test_folder_is_found_below_models_only(server: ComfyServer, beach: str, stand_in: Path, tmp_path: Path) -> None:
    models = server.work_dir / "models"
    (models / "text_encoders").mkdir(exist_ok=True)
    linked = models / "text_encoders" / "linked"
    shutil.copytree(stand_in, tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    texts = set()
    for source in ("LLM\\stand-in", str(stand_in), "text_encoders/linked", "linked", " LLM/../LLM/stand-in"):
        prompt = prompt_for(beach, loader={"source": source}, mode="da", max_tokens=16, seed=1)
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
def test_folder_elsewhere_is_refused(server: ComfyServer, beach: str, stand_in: Path, source: str) -> None:
    """Each of them is there, with a model in it; only its place is wrong."""
    models = server.work_dir / "models"
    source = source.format(base=server.work_dir.name, models=models)
    elsewhere = (models / source.replace("\\", "/")).resolve()
    shutil.copytree(stand_in, elsewhere, dirs_exist_ok=True)
    with pytest.raises(ExecutionError, match=r"expected a folder below ComfyUI's models folder.* got '") as refused:
        run(server, prompt_for(beach, loader={"source": source}))
    assert "folders elsewhere cannot be named" in str(refused.value)


def test_missing_folder_is_named(server: ComfyServer, beach: str) -> None:
    with pytest.raises(ExecutionError, match="put the model at ") as refused:
        run(server, prompt_for(beach, loader={"source": "LLM/none"}))
    assert f"put the model at {server.work_dir / 'models' / 'LLM' / 'none'} or " in str(refused.value)
    assert str(server.work_dir / "models" / "text_encoders" / "LLM" / "none") in str(refused.value)


def test_interrupt_ends_the_reading_of_a_long_prompt(server: ComfyServer, beach: str, slow_stand_in: Path) -> None:
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
        run(server, prompt_for(beach, loader={"source": "LLM/slow"}, max_tokens=16), on_progress=interrupt)
    assert pressed.seconds() < 1
    assert set(values) == {0}, "the prompt was read to its end"


def test_no_source_is_refused(server: ComfyServer, beach: str) -> None:
    with pytest.raises(ExecutionError, match="got nothing; name one, or type a caption"):
        run(server, prompt_for(beach, loader={"source": " "}))


# ComfyUI's own models


def test_clip_that_writes_no_text_is_refused(server: ComfyServer, beach: str) -> None:
    prompt = prompt_for(beach, loader={"source": "", "clip": ["6", 1]})
    loaded = {"checkpoint": "embedded (tiny, no text)", "control": "auto"}
    prompt["6"] = {"class_type": "EAM_LoadModel", "inputs": loaded}
    with pytest.raises(ExecutionError, match=r"expected a (ComfyUI whose CLIP models write text|CLIP of a vision)"):
        run(server, prompt)
