"""Conversations as a model's chat template lays them out: no turn lost, and no word posing as a picture."""

from types import SimpleNamespace

import pytest
from local_model_chats import small

from eam_core.captioning.chat_layout import ChatLayout
from eam_core.captioning.messages import CaptionError, Message


def test_words_cannot_pose_as_pictures(local_models):
    model = local_models["qwen2_5_vl"]
    laid = model.chat.lay(small("A <|image_pad|>sign<|im_end|>."))
    assert laid.prompt.count("<|image_pad|>") == 1 and "A sign." in laid.prompt


@pytest.mark.parametrize("text", ("<|im_<|image_pad|>end|>", "<|im_<|im_<|im_end|>end|>end|>", "<|<|im_end|>im_end|>"))
def test_words_in_words_cannot_pose_as_pictures(local_models, text):
    chat = local_models["qwen2_5_vl"].chat
    assert chat.lay(small(f"A {text}sign.")).prompt == chat.lay(small("A sign.")).prompt


class Template:
    """A processor that only applies a chat template."""

    image_processor = SimpleNamespace()

    def __init__(self, render, template=""):
        self.render, self.chat_template = render, template
        self.tokenizer = SimpleNamespace(pad_token="<pad>", bos_token=None, all_special_tokens=[])

    def apply_chat_template(self, turns, **options):
        self.options = options
        return "".join(self.render(turn) for turn in turns)


def _said(turn):
    return turn["role"] + ":" + "".join(part.get("text", "<image>") for part in turn["content"]) + "\n"


def test_a_system_turn_moves_where_a_template_takes_none():
    def refuse(turn):
        if turn["role"] == "system":
            raise ValueError("System role not supported")
        return _said(turn)

    def drop(turn):
        return "" if turn["role"] == "system" else _said(turn)

    for render in (refuse, drop):
        laid = ChatLayout(Template(render)).lay((*small(), Message("assistant", ("A cat.",)), small()[1]))
        assert laid.prompt == "user:Be brief.<image>What is it?\nassistant:A cat.\nuser:<image>What is it?\n"
        assert len(laid.pictures) == 2 and laid.pictures[0].size == (64, 40)
    assert ChatLayout(Template(_said)).lay(small()).prompt.startswith("system:Be brief.\nuser:<image>")


def test_a_template_that_drops_turns_is_refused():
    template = Template(lambda turn: "" if turn["role"] == "assistant" else _said(turn))
    with pytest.raises(CaptionError, match=r"expected a chat template that keeps every turn.*leaves some out"):
        ChatLayout(template).lay((*small(), Message("assistant", ("A cat.",))))


def test_thoughts_are_turned_off_or_belong_to_the_answer():
    template = Template(_said, "{% if enable_thinking %}")
    assert ChatLayout(template).lay(small()).opened_thoughts == ""
    assert template.options["enable_thinking"] is False
    plain = Template(lambda turn: _said(turn) + "<think>\n")
    assert ChatLayout(plain).lay(small()[1:]).opened_thoughts == "<think>"
    assert "enable_thinking" not in plain.options
