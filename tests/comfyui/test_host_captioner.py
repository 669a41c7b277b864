"""ComfyUI's own models that write text as captioners, on a stand-in for the CLIP of newer versions; needs no server."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
from comfy_host import REPO

from eam_core.captioning.messages import GenerateConfig
from eam_core.captioning.prompt import load_prompt


class Writing(torch.nn.Linear):
    """A part of a stand-in model that writes."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def generate(self) -> None:
        """There to be found."""


class StandInClip:
    """What newer versions of ComfyUI give as CLIP, answering with what it was asked."""

    def __init__(self, named: str) -> None:
        self.named, self.asked = named, {}
        self.cond_stage_model = Writing()
        self.cond_stage_model.clip, self.cond_stage_model.qwen = "qwen", Writing()
        self.cond_stage_model.qwen.transformer = Writing()
        self.patcher = SimpleNamespace(patches={}, patches_uuid=uuid4())

    def tokenize(self, text: str, return_word_ids: bool = False, **given: Any) -> dict[str, Any]:
        self.asked = {"text": text} | given
        pictures = given.get(self.named)
        pictures = pictures if isinstance(pictures, list) else [pictures] if pictures is not None else []
        return {"qwen": [[(5, 1.0), *(({"type": "image", "data": each}, 1.0) for each in pictures)]]}

    def generate(
        self, tokens: dict[str, Any], do_sample: bool = True, max_length: int = 256, **given: Any
    ) -> list[int]:
        self.drawn = {"tokens": tokens, "do_sample": do_sample, "max_length": max_length} | given
        return [1, 2]

    def decode(self, token_ids: list[int]) -> str:
        return f"decoded {token_ids}"


@pytest.fixture(scope="module")
def host_captioner() -> Iterator[ModuleType]:
    """The module without a ComfyUI around it, which it does not need."""
    for name, folder in (("eam_alone", REPO), ("eam_alone.nodes", REPO / "nodes")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    yield importlib.import_module("eam_alone.nodes.host_captioner")
    for name in [name for name in sys.modules if name.split(".")[0] == "eam_alone"]:
        del sys.modules[name]


@pytest.mark.parametrize("named", ["image", "images"])
def test_clip_gets_one_text_and_one_picture(host_captioner: ModuleType, named: str) -> None:
    clip, picture = StandInClip(named), torch.rand(3, 6, 8)
    conversation = load_prompt().conversation(picture, "sa")
    counted: list[tuple[int, int]] = []
    config = GenerateConfig(max_tokens=32, seed=9, temperature=0)
    answers = host_captioner.HostModel(clip).generate([conversation], config, lambda *so_far: counted.append(so_far))
    assert answers == ["decoded [1, 2]"]
    assert counted == [(0, 32)]
    texts = [part for message in conversation for part in message.parts if isinstance(part, str)]
    assert clip.asked["text"].startswith(texts[0])
    assert clip.asked["text"].endswith(texts[-1])
    for message in conversation:
        assert message.role != "assistant" or message.parts[0] in clip.asked["text"]
    (seen,) = [token[0]["data"] for token in clip.drawn["tokens"]["qwen"][0] if isinstance(token[0], dict)]
    assert torch.equal(seen, picture.movedim(0, -1)[None])
    assert (clip.drawn["do_sample"], clip.drawn["max_length"], clip.drawn["seed"]) == (False, 32, 9)


def test_unfit_clips_are_refused(host_captioner: ModuleType) -> None:
    conversation = load_prompt().conversation(torch.rand(3, 6, 8), "da")
    blind = StandInClip("other")
    with pytest.raises(Exception, match="got one that sees no pictures"):
        host_captioner.HostModel(blind).generate([conversation], GenerateConfig())
    for deep in range(3):
        mute = StandInClip("image")
        model, quiet = mute.cond_stage_model, torch.nn.Linear(2, 2)
        if deep == 0:
            mute.cond_stage_model = quiet
        else:
            setattr(*((model, "qwen") if deep == 1 else (model.qwen, "transformer")), quiet)
        with pytest.raises(Exception, match="got one that does not write text"):
            host_captioner.HostModel(mute).generate([conversation], GenerateConfig())
        assert not mute.asked
    with pytest.raises(Exception, match="expected a ComfyUI whose CLIP models write text"):
        host_captioner.HostModel(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("error", [AttributeError, TypeError, NotImplementedError])
@pytest.mark.parametrize("where", ["tokenize", "generate", "decode"])
def test_errors_within_the_host_stay_what_they_are(
    host_captioner: ModuleType, where: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **given: Any) -> None:
        raise error("'NoneType' object has no attribute 'images'")

    clip = StandInClip("image")
    monkeypatch.setattr(clip, where, fail)
    with pytest.raises(error, match="'NoneType' object"):
        host_captioner.HostModel(clip).generate(
            [load_prompt().conversation(torch.rand(3, 6, 8), "da")], GenerateConfig()
        )


@pytest.mark.parametrize("named", ["image", "images"])
@pytest.mark.parametrize("inner", [False, True])
def test_only_what_a_tokenizer_has_parameters_for_is_given(
    host_captioner: ModuleType, named: str, inner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = StandInClip(named)
    whole = clip.tokenize

    def with_image(text: str, return_word_ids: bool = False, image: Any = None) -> Any:
        return whole(text, image=image)

    def with_images(text: str, return_word_ids: bool = False, thinking: bool = True, images: Any = ()) -> Any:
        return whole(text, thinking=thinking, images=images)

    narrow = with_image if named == "image" else with_images
    if inner:  # as in ComfyUI, whose CLIP hands on all that it is given
        clip.tokenizer = SimpleNamespace(tokenize_with_weights=narrow)
        monkeypatch.setattr(clip, "tokenize", lambda text, return_word_ids=False, **given: narrow(text, **given))
    else:
        monkeypatch.setattr(clip, "tokenize", narrow)
    conversation = load_prompt().conversation(torch.rand(3, 6, 8), "da")
    assert host_captioner.HostModel(clip).generate([conversation], GenerateConfig()) == ["decoded [1, 2]"]
    assert clip.asked.keys() == {"text", "image"} if named == "image" else {"text", "images", "thinking"}
    assert named == "image" or clip.asked["thinking"] is False


def test_tokens_of_another_kind_hold_no_picture(host_captioner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = StandInClip("image")
    for tokens in ({"prefix": [1, 2], "seed": 3}, [[(5, 1.0)]], {"qwen": [[5, ()]]}):
        monkeypatch.setattr(clip, "tokenize", lambda text, tokens=tokens, **given: tokens)
        with pytest.raises(Exception, match="got one that sees no pictures"):
            conversation = load_prompt().conversation(torch.rand(3, 6, 8), "da")
            host_captioner.HostModel(clip).generate([conversation], GenerateConfig())


def test_clips_are_told_apart_by_their_weights(host_captioner: ModuleType) -> None:
    one, other = StandInClip("image"), StandInClip("image")
    same = StandInClip("image")
    same.cond_stage_model.load_state_dict(one.cond_stage_model.state_dict())
    identity = host_captioner.HostModel(one).identity
    assert identity == host_captioner.HostModel(same).identity
    assert identity != host_captioner.HostModel(other).identity


def test_clips_are_told_apart_by_their_patches(host_captioner: ModuleType) -> None:
    """A LoRA is no part of the state dict; the number changes with each, and at each start of ComfyUI."""
    clip = StandInClip("image")
    plain = host_captioner.HostModel(clip).identity
    clip.patcher.patches_uuid = uuid4()
    assert host_captioner.HostModel(clip).identity == plain
    clip.patcher.patches = {"weight": [(1.0, "a LoRA's", 1.0, None, None)]}
    patched = host_captioner.HostModel(clip).identity
    assert host_captioner.HostModel(clip).identity == patched
    clip.patcher.patches_uuid = uuid4()
    assert len({plain, patched, host_captioner.HostModel(clip).identity}) == 3
    del clip.patcher
    assert host_captioner.HostModel(clip).identity == plain
