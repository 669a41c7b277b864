"""Models of endpoints: the name that captions are kept under is that of the model that answers."""

import pytest
import torch
from captioning_server import ChatServer, json_reply, stream, whole
from endpoint_chats import CONFIG, closed_port, conversation

from eam_core.captioning.cache import CaptionCache
from eam_core.captioning.captioner import CaptionConfig, SubjectCaptioner
from eam_core.captioning.endpoint import Endpoint
from eam_core.captioning.messages import CaptionError

pytestmark = pytest.mark.usefixtures("no_caption_settings")


def test_identity_names_model_and_address():
    with ChatServer(models="qwen") as server:
        assert Endpoint(server.url).identity == f"qwen at {server.url}/v1"
        assert Endpoint(server.url + "/v1", "mine").identity == f"mine at {server.url}/v1"
        assert Endpoint(server.url + "/b/v1", "mine").identity == f"mine at {server.url}/b/v1"
        assert len(server.listed) == 1 and not server.asked
    with (
        ChatServer(models=json_reply({"data": []})) as server,
        pytest.raises(CaptionError, match=r"expected a list of models, got .*; name the model yourself"),
    ):
        Endpoint(server.url).identity  # noqa: B018


def test_captions_of_a_server_with_another_model_are_kept_apart(tmp_path):
    port, picture, config = closed_port(), torch.zeros(3, 16, 16), CaptionConfig(mode="da", generate=CONFIG)
    captioner = SubjectCaptioner(Endpoint(f"http://127.0.0.1:{port}"), CaptionCache(tmp_path))
    for name, answer in (("one", "A cat."), ("two", "A dog."), ("one", "A fox.")):
        with ChatServer(lambda asked, answer=answer: answer, models=name, port=port) as server:
            found = captioner.caption(picture, config).caption
            assert captioner.model.identity.startswith(f"{name} at ")
        assert found == ("A cat." if name == "one" else "A dog.") and len(server.listed) == 1
        assert len(server.asked) == (answer != "A fox.")  # that of the first is still kept


@pytest.mark.parametrize("reply", [whole, stream])
@pytest.mark.parametrize(
    ("listed", "answering", "same"),
    [
        ("qwen", "qwen", True),
        ("qwen3-vl", "Qwen/Qwen3-VL:4b", True),
        ("/models/gemma.gguf", "gemma", True),
        ("qwen", "", True),
        ("qwen", "gemma", False),
        ("gemma-4b.gguf", "gemma-12b.gguf", False),
    ],
)
def test_an_answer_of_another_model_than_the_listed_one_is_refused(reply, listed, answering, same):
    with ChatServer(lambda asked: reply("A cat.", model=answering), models=listed) as server:
        (answer,) = Endpoint(server.url).generate([conversation()], CONFIG, lambda *_: None)
    if same:
        assert answer == "A cat."
    else:
        assert f"expected an answer of the model '{listed}', got one of '{answering}'; name the" in str(answer)


def test_a_name_that_was_given_may_be_an_alias_unless_it_came_back_before():
    with ChatServer(lambda asked: whole("A cat.", model=asked.question)) as server:
        model = Endpoint(server.url, "mine", concurrency=1)
        answers = model.generate([conversation(name) for name in ("gemma", "qwen", "mine", "gemma")], CONFIG)
    assert answers[:3] == ["A cat."] * 3
    assert "expected an answer of the model 'mine', got one of 'gemma'" in str(answers[3])


def test_a_model_with_an_unprintable_name_is_not_taken():
    with ChatServer(models="\x1b]0;qwen") as server, pytest.raises(CaptionError, match="expected a list of") as error:
        Endpoint(server.url).prepare()
    assert str(error.value).isprintable()
