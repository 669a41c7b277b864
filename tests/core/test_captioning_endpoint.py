"""Captions from an endpoint: what is sent and what is read."""

import base64
import io
import json
import time

import numpy as np
import pytest
import torch
from captioning_server import ChatServer, json_reply, stream, whole
from endpoint_chats import CONFIG, conversation
from PIL import Image

from eam_core.captioning import endpoint as endpoint_module
from eam_core.captioning.captioner import CaptionConfig, SubjectCaptioner
from eam_core.captioning.endpoint import Endpoint, TimeLimits
from eam_core.captioning.messages import CaptionError, Message
from eam_core.captioning.prompt import load_prompt

pytestmark = pytest.mark.usefixtures("no_caption_settings")


def pixels_of(url: str) -> tuple[str, torch.Tensor]:
    head, data = url.split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{image.format.lower()}"
    return image.format, torch.from_numpy(np.array(image).astype(np.float32) / 255).permute(2, 0, 1)


def test_a_conversation_arrives_with_its_roles_texts_and_seven_pictures_in_order():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 9, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, (400, 600), mode="bicubic").clamp(0, 1)[0]
    asked = load_prompt().conversation(picture, "sa", extra="Name plants.")
    with ChatServer(lambda asked: "Fine.") as server:
        assert Endpoint(server.url + "/v1/").generate([asked], CONFIG) == ["Fine."]
        (got,) = server.asked
    assert {name: got.fields[name] for name in ("model", "max_tokens", "temperature", "seed", "stream")} == {
        "model": "first-model",
        "max_tokens": 64,
        "temperature": 0.2,
        "seed": 5,
        "stream": False,
    }
    messages = got.fields["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 6, "user"]
    sent = [part for message in asked for part in message.parts]
    received = []
    for message in messages:
        content = message["content"]
        received += [content] if isinstance(content, str) else content
    assert len(received) == len(sent) == 1 + 6 * 3 + 2
    pictures = 0
    for there, here in zip(received, sent):
        if isinstance(here, str):
            assert (there if isinstance(there, str) else there["text"]) == here
            continue
        kind, pixels = pixels_of(there["image_url"]["url"])
        assert kind == "JPEG" and pixels.shape == here.shape
        assert (pixels - here).abs().mean() < 0.02  # no other example's, and not upside down
        pictures += 1
    assert pictures == 7


def test_small_pictures_are_sent_without_loss():
    picture = torch.rand(3, 200, 300, generator=torch.Generator().manual_seed(1))
    with ChatServer() as server:
        Endpoint(server.url).generate([(Message("user", (picture, "?")),)], CONFIG)
    kind, pixels = pixels_of(server.asked[0].fields["messages"][0]["content"][0]["image_url"]["url"])
    assert kind == "PNG" and (pixels - picture).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("streams", [True, False])
def test_streamed_and_whole_answers_are_read_alike_when_streaming_is_asked_for(streams):
    seen = []
    with ChatServer(lambda asked: "A räd house on a hill.", streams=streams) as server:
        answers = Endpoint(server.url).generate([conversation()], CONFIG, lambda *progress: seen.append(progress))
    assert answers == ["A räd house on a hill."] and server.asked[0].fields["stream"] is True
    assert all(most == 64 for _, most in seen)
    counts = [count for count, _ in seen]
    assert counts == sorted(counts) and (counts[-1] > 5 if streams else counts[-1] == 0)


def test_progress_grows_piece_by_piece():
    seen = []
    with ChatServer(lambda asked: stream("one two three four five", between=0.05)) as server:
        Endpoint(server.url, "m").generate([conversation()], CONFIG, lambda count, _: seen.append(count))
    assert len(set(seen)) >= 5


def test_content_in_parts_is_joined():
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "A cat "},
        {"type": "text", "text": "sits."},
    ]
    with ChatServer(lambda asked: whole(parts)) as server:
        assert Endpoint(server.url).generate([conversation()], CONFIG) == ["A cat sits."]


@pytest.mark.parametrize("reply", [whole("A cat. A dog and", "length"), stream("A cat. A dog and", "length")])
def test_an_answer_that_may_have_no_more_tokens_is_given_as_far_as_it_goes(reply):
    with ChatServer(lambda asked: reply) as server:
        assert Endpoint(server.url).generate([conversation()], CONFIG) == ["A cat. A dog and"]
        assert len(server.asked) == 1


def test_several_are_asked_at_once_and_stay_in_order_and_one_failure_stops_none():
    def answer(asked):
        number = int(asked.question)
        time.sleep(0.02 * (9 - number))
        return json_reply({"error": {"message": "picture too large"}}, 400) if number == 3 else f"answer {number}"

    with ChatServer(answer) as server:
        chats = [conversation(str(number)) for number in range(9)]
        answers = Endpoint(server.url, concurrency=3).generate(chats, CONFIG)
    assert server.most_at_once == 3 and len(server.listed) == 1
    assert [a for i, a in enumerate(answers) if i != 3] == [f"answer {i}" for i in range(9) if i != 3]
    assert isinstance(answers[3], CaptionError) and "HTTP status 400 (picture too large)" in str(answers[3])


@pytest.mark.parametrize(
    ("answer", "message"),
    [("I'm sorry, but I can't help with that.", "refusal"), ("", "empty answer"), (whole(None), "empty answer")],
)
def test_refusals_and_empty_answers_are_asked_for_once_more_and_told(answer, message):
    def script(asked):
        return "A cat." if asked.fields["seed"] > 5 and good else answer

    picture, config = torch.zeros(3, 16, 16), CaptionConfig(mode="da", generate=CONFIG)
    with ChatServer(script) as server:
        captioner = SubjectCaptioner(Endpoint(server.url))
        good = False
        with pytest.raises(CaptionError, match=message):
            captioner.caption(picture, config)
        good = True
        assert captioner.caption(picture, config).caption == "A cat."
    assert [asked.fields["seed"] for asked in server.asked] == [5, 5 + 1_000_003] * 2


def test_a_subject_aware_answer_becomes_a_caption_with_its_focus():
    area = {"name": "cat", "box": [100, 200, 500, 1000]}
    text = json.dumps({"focused": True, "focal_areas": [area], "caption": "A wall. A cat sits on it."})
    with ChatServer(lambda asked: f"```json\n{text}\n```") as server:
        caption = SubjectCaptioner(Endpoint(server.url)).caption(torch.zeros(3, 16, 16), CaptionConfig())
    assert caption.focused and caption.focal_areas[0].box == (0.1, 0.2, 0.5, 1.0)
    assert caption.caption == "A cat sits on it. A wall."


NASTY = "\x1b[2J\x07\u202egone\x9b31m \ud800"


@pytest.mark.parametrize(
    "reply",
    [
        json_reply({"error": {"message": f"bad {NASTY} end"}}, 400),
        json_reply({"error": f"bad {NASTY} end"}, 200),
        whole(None, refusal=f"bad {NASTY} end"),
        json_reply(b"bad \x1b[2J\x07 end"),
    ],
)
def test_what_a_server_says_cannot_steer_a_terminal(reply):
    with ChatServer(lambda asked: reply) as server:
        (answer,) = Endpoint(server.url).generate([conversation()], CONFIG)
    assert isinstance(answer, CaptionError) and str(answer).isprintable()
    assert "bad" in str(answer) and "end" in str(answer)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="expected concurrency of at least 1, got 0"):
        Endpoint("http://localhost", concurrency=0)
    with pytest.raises(ValueError, match="expected time limits above 0 s"):
        TimeLimits(answer=0)
    assert endpoint_module.POLL_SECONDS <= 0.5
