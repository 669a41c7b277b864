"""Captions from an endpoint that fails: what is asked again, what is given up, and what ends all."""

import time

import pytest
from captioning_server import ChatServer, Raw, json_reply, stream, whole
from endpoint_chats import CONFIG, closed_port, conversation, no_wait

from eam_core.captioning.endpoint import ATTEMPTS, MOST_REFUSALS, Endpoint, EndpointError, TimeLimits
from eam_core.captioning.messages import CaptionError

pytestmark = pytest.mark.usefixtures("no_caption_settings")


LISTENED = "expected an endpoint at http://127.0.0.1:"


@pytest.mark.parametrize(
    ("first", "waits"),
    [
        (json_reply({}, 500), [1.0]),
        (json_reply({}, 503), [1.0]),
        (json_reply({}, 429, Retry_After="7"), [7.0]),
        (json_reply({}, 429, Retry_After="86400"), [60.0]),
        (json_reply({}, 429, Retry_After="soon"), [1.0]),
        (json_reply({}, 429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), [1.0]),
        (Raw(200, (b'{"choices": [',), {"Content-Length": "400"}), [1.0]),
        (stream("half an", finish=None, done=False), [1.0]),
    ],
    ids=["500", "503", "429", "429 for a day", "429 badly", "429 until the past", "broken off", "stream broken off"],
)
def test_what_may_pass_is_asked_again(first, waits):
    waited = []
    with ChatServer(lambda asked: first if asked.number == 0 else "A cat.") as server:
        model = Endpoint(server.url, sleep=no_wait(waited))
        assert model.generate([conversation()], CONFIG, lambda *_: None) == ["A cat."]
    assert waited == waits and len(server.asked) == 2
    assert server.asked[0].fields == server.asked[1].fields


def test_what_does_not_pass_is_given_up_for_that_conversation_after_growing_waits():
    waited = []
    with ChatServer(lambda asked: json_reply({"error": "no memory"}, 500)) as server:
        (answer,) = Endpoint(server.url, sleep=no_wait(waited)).generate([conversation()], CONFIG)
    assert isinstance(answer, CaptionError) and not isinstance(answer, EndpointError)
    assert "got HTTP status 500 (no memory), 4 times" in str(answer)
    assert waited == [1.0, 2.0, 4.0] and len(server.asked) == ATTEMPTS


@pytest.mark.parametrize(
    "reply",
    [
        Raw(200, (b"x",), before=9.0),
        Raw(200, (b" ",) * 100, {"Content-Length": "100"}, between=0.1),
    ],
    ids=["silent", "a byte now and then"],
)
def test_an_answer_that_takes_too_long_is_given_up(reply):
    with ChatServer(lambda asked: reply) as server:
        model = Endpoint(server.url, "m", limits=TimeLimits(answer=0.3), sleep=no_wait([]))
        start = time.monotonic()
        (answer,) = model.generate([conversation()], CONFIG)
    assert "got no whole answer within 0.3 s, 4 times" in str(answer)
    assert time.monotonic() - start < 0.3 * 4 + 4 * 0.25 + 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (json_reply(b"<html>hello"), "got something that is no JSON ('<html>hello')"),
        (json_reply(b"[" * 100_000), "got something that is no JSON ('[[["),
        (json_reply({"object": "list"}), "got no choices"),
        (json_reply({"choices": []}), "got no choices"),
        (json_reply({"choices": [{"message": "x"}]}), "expected an answer with a message"),
        (json_reply({"error": {"message": "overloaded"}}), "got an error of the server (overloaded)"),
        (whole("", "content_filter"), "withheld by the server's filter"),
        (whole(None, refusal="Not for me."), "got a refusal ('Not for me.')"),
        (Raw(200, (b" " * 2**20,) * 9), "at most 8 MiB"),
        (Raw(200, (b'data: {"error": {"message": "context full"}}\n\n',)), "error of the server (context full)"),
    ],
)
def test_answers_that_are_none_are_one_sentence_and_not_asked_again(reply, message):
    with ChatServer(lambda asked: reply) as server:
        (answer,) = Endpoint(server.url, sleep=no_wait([])).generate([conversation()], CONFIG)
    assert isinstance(answer, CaptionError) and message in str(answer) and len(server.asked) == 1
    assert len(str(answer)) < 400 and "\n" not in str(answer)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (json_reply({"error": {"message": "bad key: sk-sec***"}}, 401), "expected leave to ask"),
        (json_reply({}, 403), "got HTTP status 403; give a valid key by the environment variable EAM_API_KEY"),
        (json_reply({"message": "The model `m` does not exist."}, 404), "expected the model 'm' at http://127.0.0.1"),
        (json_reply({"error": "model 'm' not found"}, 400), "expected the model 'm' at"),
        (json_reply({"error": "Unknown model: m"}, 400), "expected the model 'm' at"),
        (json_reply({}, 307, Location="http://127.0.0.1:1/v1"), "got a redirect"),
    ],
)
def test_what_no_other_conversation_would_mend_ends_all(reply, message):
    with ChatServer(lambda asked: reply) as server:
        model = Endpoint(server.url, "m", concurrency=2, sleep=no_wait([]))
        with pytest.raises(CaptionError) as error:
            model.generate([conversation()] * 20, CONFIG)
    assert message in str(error.value) and "sk-sec" not in str(error.value)
    assert isinstance(error.value, EndpointError) and len(server.asked) <= 4


MISSING_FILE = json_reply({"error": "model runner: image file not found"}, 400)
REFUSED = [json_reply({"error": {"message": "content policy"}}, 403), json_reply({"error": "no page"}, 404)]
REFUSED += [MISSING_FILE, json_reply({"error": "model 'first-model' not found"}, 400)]


@pytest.mark.parametrize("reply", REFUSED, ids=["403", "404", "400 picture", "400 model"])
def test_a_server_that_gave_answers_may_refuse_a_single_picture(reply):
    with ChatServer(lambda asked: reply if asked.number == 2 else f"answer {asked.number}") as server:
        chats = [conversation()] * 5
        answers = Endpoint(server.url, concurrency=1, sleep=no_wait([])).generate(chats, CONFIG)
    assert [a for i, a in enumerate(answers) if i != 2] == [f"answer {i}" for i in (0, 1, 3, 4)]
    assert isinstance(answers[2], CaptionError) and not isinstance(answers[2], EndpointError)
    assert f"HTTP status {reply.status}" in str(answers[2]) and "model's name" not in str(answers[2])


def test_a_missing_file_of_a_picture_is_no_missing_model_from_the_first():
    with ChatServer(lambda asked: MISSING_FILE) as server:
        (answer,) = Endpoint(server.url, "model").generate([conversation()], CONFIG)
    assert isinstance(answer, CaptionError) and not isinstance(answer, EndpointError)
    assert "HTTP status 400 (model runner: image file not found)" in str(answer)


def test_a_server_that_refuses_everything_from_some_point_on_ends_all_and_an_answer_between_counts_anew():
    def script(asked):
        return "A cat." if asked.number in (0, MOST_REFUSALS) else json_reply({}, 403)

    with ChatServer(script) as server:
        model = Endpoint(server.url, concurrency=1)
        answers = model.generate([conversation()] * (2 * MOST_REFUSALS), CONFIG)
        assert [i for i, answer in enumerate(answers) if answer == "A cat."] == [0, MOST_REFUSALS]
        with pytest.raises(EndpointError, match=rf"got HTTP status 403; .* \({MOST_REFUSALS} in a row\)"):
            model.generate([conversation()], CONFIG)


def test_nothing_more_is_sent_once_the_endpoint_is_given_up(monkeypatch):
    """Even if the thread that waits sees it late."""
    seen_late = lambda event, seconds=None: time.sleep(0.3)  # noqa: E731
    monkeypatch.setattr("eam_core.captioning.endpoint_watch.threading.Event.wait", seen_late)
    with ChatServer(lambda asked: json_reply({}, 401)) as server:
        model = Endpoint(server.url, "m", concurrency=1, sleep=no_wait([]))
        with pytest.raises(EndpointError):
            model.generate([conversation()] * 20, CONFIG)
        assert len(server.asked) == 1


def test_a_list_of_models_is_no_answer_yet():
    """Servers that want a key tend to list their models without one."""
    with ChatServer(lambda asked: json_reply({}, 403)) as server:
        model = Endpoint(server.url)
        model.prepare()
        with pytest.raises(EndpointError, match="expected leave to ask"):
            model.generate([conversation()], CONFIG)


def test_nobody_listening_is_told_at_once():
    waits = []
    model = Endpoint(f"http://127.0.0.1:{closed_port()}", "m", sleep=no_wait(waits))
    with pytest.raises(EndpointError, match=LISTENED + r"\d+, got no connection .*; start the server"):
        model.generate([conversation()] * 3, CONFIG)
    assert not waits


def test_a_server_that_has_gone_is_waited_for_a_while_and_ends_nothing_if_it_gave_answers():
    waits, port = [], closed_port()
    with ChatServer(port=port) as server:
        model = Endpoint(server.url, sleep=no_wait(waits))
        model.prepare()
        model.generate([conversation()], CONFIG)
    model.prepare()
    assert not waits  # the model's name is known
    (answer,) = model.generate([conversation()], CONFIG)
    assert waits == [1.0, 2.0, 4.0]
    assert str(answer).startswith(LISTENED) and not isinstance(answer, EndpointError)
    with ChatServer(lambda asked: "A dog.", port=port):
        model.prepare()
        assert model.generate([conversation()], CONFIG) == ["A dog."]


def test_a_server_that_goes_before_any_answer_ends_all():
    waits = []
    with ChatServer() as server:
        model = Endpoint(server.url, sleep=no_wait(waits))
        model.prepare()
    with pytest.raises(EndpointError, match=LISTENED):
        model.generate([conversation()], CONFIG)
    assert waits == [1.0, 2.0, 4.0]


def test_a_server_may_ask_to_be_left_alone_three_times():
    waited, busy = [], json_reply({}, 429, Retry_After="7")
    with ChatServer(lambda asked: busy if asked.number < 3 else "A cat.") as server:
        model = Endpoint(server.url, "m", sleep=no_wait(waited))
        assert model.generate([conversation()], CONFIG) == ["A cat."]
    assert waited == [7.0, 7.0, 7.0] and len(server.asked) == 4
