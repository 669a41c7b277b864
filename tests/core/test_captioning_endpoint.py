"""Captions from an endpoint: what is sent, what is read, what is asked again, and where pictures may go."""

import base64
import http.client
import io
import json
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from captioning_server import ChatServer, Raw, json_reply, stream, whole

from eam_core.captioning import endpoint as endpoint_module
from eam_core.captioning.address import parse_address
from eam_core.captioning.cache import CaptionCache
from eam_core.captioning.captioner import CaptionConfig, SubjectCaptioner
from eam_core.captioning.endpoint import ATTEMPTS, MOST_REFUSALS, Endpoint, EndpointError, TimeLimits
from eam_core.captioning.messages import CaptionError, GenerateConfig, Message
from eam_core.captioning.prompt import load_prompt
from eam_core.captioning.source import open_model

CONFIG = GenerateConfig(max_tokens=64, seed=5, temperature=0.2)
LISTENED = "expected an endpoint at http://127.0.0.1:"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("EAM_API_KEY", "EAM_ALLOW_REMOTE"):
        monkeypatch.delenv(name, raising=False)


def conversation(text: str = "What is this?"):
    return (Message("user", (torch.zeros(3, 16, 16), text)),)


def pixels_of(url: str) -> tuple[str, torch.Tensor]:
    head, data = url.split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{image.format.lower()}"
    return image.format, torch.from_numpy(np.array(image).astype(np.float32) / 255).permute(2, 0, 1)


def no_wait(waits: list[float]):
    return lambda seconds: waits.append(seconds)


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


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(monkeypatch):
    monkeypatch.setenv("EAM_API_KEY", "sk-secret-key")
    with ChatServer() as other:
        redirect = json_reply({}, 308, Location=f"{other.url}/v1/chat/completions")
        with ChatServer(lambda asked: redirect, models=redirect) as server:
            for model in (Endpoint(server.url, "m"), Endpoint(server.url)):
                with pytest.raises(CaptionError, match=r"got a redirect .*, which is not followed") as error:
                    model.generate([conversation()], CONFIG)
                assert other.url not in str(error.value)
        assert not other.asked and not other.listed


def test_the_key_is_in_the_header_and_nowhere_else(monkeypatch, caplog, capfd):
    key = "sk-secret/key=="
    monkeypatch.setenv("EAM_API_KEY", f" {key}\n")
    replies = [
        json_reply({"error": {"message": "x" * 150 + f" key {key} is unknown"}}, 400),
        json_reply(f"<p>{key}".encode()),
        json_reply({"error": f"your key {key}"}, 500),
    ]
    with ChatServer(lambda asked: replies[int(asked.question)]) as server:
        model = Endpoint(server.url, sleep=no_wait([]))
        answers = model.generate([conversation(str(number)) for number in range(3)], CONFIG)
    for asked in server.asked:
        assert asked.headers["Authorization"] == f"Bearer {key}"
        assert key not in json.dumps(asked.fields) + asked.path
    assert server.listed[0]["Authorization"] == f"Bearer {key}"
    told = [*map(str, answers), model.identity, repr(vars(model)), caplog.text, *capfd.readouterr()]
    assert all(isinstance(answer, CaptionError) for answer in answers) and not any("sk-" in text for text in told)
    monkeypatch.delenv("EAM_API_KEY")
    with ChatServer() as server:
        Endpoint(server.url).generate([conversation()], CONFIG)
    assert "Authorization" not in server.asked[0].headers


@pytest.mark.parametrize("key", ["sk-\u00e9\u00e9", "sk-a\nX-Evil: 1"])
def test_a_key_that_no_header_can_hold_is_told_without_it(monkeypatch, key):
    monkeypatch.setenv("EAM_API_KEY", key)
    with ChatServer() as server, pytest.raises(CaptionError, match="EAM_API_KEY: expected printable ASCII") as error:
        Endpoint(server.url).generate([conversation()], CONFIG)
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.5:8000",
        "http://localhost.evil.example/v1",
        "http://127.0.0.1.evil.example",
        "http://0.0.0.0:8000",
        "http://127.1:8000",
        "http://2130706433",
        "http://[::ffff:127.0.0.1]:8000",
        "http://[fe80::1]",
        "https://api.example.com/v1",
        "http://LOCALHOST.:80",
    ],
)
def test_other_machines_are_refused_until_somebody_opts_in(url, monkeypatch):
    for make in (lambda: Endpoint(url), lambda: open_model(url)):
        with pytest.raises(CaptionError, match=r"to which the pictures would leave this machine; .*--allow-remote"):
            make()
    monkeypatch.setenv("EAM_ALLOW_REMOTE", "0")
    with pytest.raises(CaptionError):
        Endpoint(url)
    assert not Endpoint(url, allow_remote=True).address.is_local
    monkeypatch.setenv("EAM_ALLOW_REMOTE", "1")
    assert not Endpoint(url).address.is_local
    host = urlsplit(url).hostname
    for listed, allowed in ((host, True), (f"a.example, {host.upper()} ,", True), (f"x{host},1,*", False)):
        monkeypatch.setenv("EAM_ALLOW_REMOTE", listed)
        if allowed:
            assert Endpoint(url).address.host == host
        else:
            with pytest.raises(CaptionError, match="name the host in the environment variable EAM_ALLOW_REMOTE"):
                Endpoint(url)


def test_zero_allows_no_host_of_that_name(monkeypatch):
    monkeypatch.setenv("EAM_ALLOW_REMOTE", "0")
    with pytest.raises(CaptionError, match="to which the pictures would leave this machine"):
        Endpoint("http://0:8000")


REMOTE = "https://api.example.com/v1"


@pytest.mark.parametrize(
    ("url", "allow_remote", "listed", "takes"),
    [
        ("http://127.0.0.1:8000", False, "", True),
        ("http://[::1]:8000", False, "1", True),
        (REMOTE, False, "1", False),
        (REMOTE, False, "api.example.com", True),
        (REMOTE, True, "", True),
        (REMOTE, True, "1", True),
        ("https://other.example.com/v1", True, "api.example.com", True),
        ("https://[2001:DB8::1]/v1", False, "[2001:db8::1]", True),
        ("http://api.example.com/v1", False, "api.example.com", False),
        ("http://192.168.1.5:8000", True, "192.168.1.5", False),
    ],
)
def test_the_key_goes_to_this_machine_and_encrypted_to_hosts_that_were_named(
    url, allow_remote, listed, takes, monkeypatch
):
    """Seen where the header is made: the other machine is a server of this one's, reached without TLS."""
    monkeypatch.setenv("EAM_ALLOW_REMOTE", listed)
    monkeypatch.setenv("EAM_API_KEY", "sk-secret")
    with ChatServer(lambda asked: json_reply({}, 403)) as server:
        model = Endpoint(url, "m", allow_remote)
        port = int(server.url.rpartition(":")[2])
        there = lambda self: http.client.HTTPConnection("127.0.0.1", port, timeout=5)  # noqa: E731
        monkeypatch.setattr("eam_core.captioning.exchange.Exchange._connected", there)
        with pytest.raises(EndpointError) as error:
            model.generate([conversation()], CONFIG)
    assert [asked.headers.get("Authorization") for asked in server.asked] == ["Bearer sk-secret" if takes else None]
    told = "give a valid key" if takes else "EAM_API_KEY was not sent, as other machines get it by https only"
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        (" http://127.9.9.9/v1/ ", "http://127.9.9.9:80/v1"),
        ("https://LocalHost:1234/v1/chat/completions", "https://localhost:1234/v1"),
        ("http://[::1]:11434/", "http://[::1]:11434/v1"),
        ("http://localhost/api", "http://localhost:80/api/v1"),
        ("http://localhost/v1beta/openai", "http://localhost:80/v1beta/openai"),
    ],
)
def test_addresses_of_this_machine(url, base):
    address = parse_address(url)
    assert address.is_local and str(address) == base


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://127.0.0.1", "got the scheme 'ftp'"),
        ("file:///etc/passwd", "got the scheme 'file'"),
        ("127.0.0.1:8000", "expected an http or https address"),
        ("http://", "expected an address with a host"),
        ("http://127.0.0.1@evil.example", "without user name and password, got one for 'evil.example'"),
        ("http://name:pa55word@127.0.0.1", "without user name and password"),
        ("http://127.0.0.1\\@evil.example", "got blanks, backslashes"),
        ("http://127.0.0.1\t.evil.example", "got blanks, backslashes"),
        ("http://ｌocalhost", "letters beyond ASCII"),
        ("http://127.0.0.1:99999", "something that cannot be read"),
        ("http://[::1", "something that cannot be read"),
        ("http://127.0.0.1/v1?key=pa55word", "without '?' and '#'"),
        ("http://127.0.0.1%2eevil.example", "expected an address with a host"),
    ],
)
def test_addresses_that_mislead_are_refused_even_with_leave(url, message):
    with pytest.raises(CaptionError, match=r"^endpoint: ") as error:
        Endpoint(url, allow_remote=True)
    assert message in str(error.value) and "pa55word" not in str(error.value)


def test_a_name_that_only_claims_to_be_this_machine_gets_nothing(monkeypatch):
    """A hosts file may say anything of "localhost"."""
    with ChatServer() as server:
        monkeypatch.setattr("eam_core.captioning.exchange.is_loopback", lambda number: False)
        with pytest.raises(CaptionError, match=r"expected localhost to be this machine, got 127\.0\.0\.1"):
            Endpoint(server.url.replace("127.0.0.1", "localhost")).identity  # noqa: B018
    assert not server.listed


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with ChatServer() as proxy, ChatServer() as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert Endpoint(server.url).generate([conversation()], CONFIG) == ["A cat."]
    assert not proxy.asked and not proxy.listed


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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


def test_a_model_with_an_unprintable_name_is_not_taken():
    with ChatServer(models="\x1b]0;qwen") as server, pytest.raises(CaptionError, match="expected a list of") as error:
        Endpoint(server.url).prepare()
    assert str(error.value).isprintable()


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["before the head", "between pieces", "waiting to ask again", "list of models"])
def test_a_host_can_interrupt_within_a_second(where):
    slow = Raw(200, (b"x",), before=20.0)
    reply = {
        "before the head": slow,
        "between pieces": Raw(200, (b": ping\n\n",) * 3, between=20.0),
        "waiting to ask again": json_reply({}, 429, Retry_After="20"),
    }.get(where, "A cat.")
    begun, calls = time.monotonic(), []

    def on_token(count: int, most: int) -> None:
        calls.append(time.monotonic())
        if calls[-1] - begun > 1:
            raise Stop

    with ChatServer(lambda asked: reply, models=slow if where == "list of models" else "m") as server:
        model = Endpoint(server.url)
        with pytest.raises(Stop):
            model.generate([conversation()] * 2, CONFIG, on_token)
        assert time.monotonic() - begun < 2
        assert max(after - before for before, after in zip([begun, *calls], calls)) < 0.5
        deadline = time.monotonic() + 2
        while any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()):
            assert time.monotonic() < deadline, "requests went on after they were stopped"
            time.sleep(0.02)


@pytest.mark.parametrize("models", [Raw(200, (b"x",), before=20.0), json_reply({}, 429, Retry_After="20")])
def test_a_host_can_interrupt_a_captioner_that_asks_for_the_name_of_its_model(models):
    begun, calls = time.monotonic(), []

    def on_token(count: int, most: int) -> None:
        calls.append((count, most))
        if time.monotonic() - begun > 0.6:
            raise Stop

    with ChatServer(models=models) as server:
        captioner = SubjectCaptioner(Endpoint(server.url))
        with pytest.raises(Stop):
            captioner.caption(torch.zeros(3, 16, 16), CaptionConfig(), on_token)
    assert time.monotonic() - begun < 1.6 and not server.asked
    assert set(calls) == {(0, 0)} and len(calls) >= 2


def test_a_server_may_ask_to_be_left_alone_three_times():
    waited, busy = [], json_reply({}, 429, Retry_After="7")
    with ChatServer(lambda asked: busy if asked.number < 3 else "A cat.") as server:
        model = Endpoint(server.url, "m", sleep=no_wait(waited))
        assert model.generate([conversation()], CONFIG) == ["A cat."]
    assert waited == [7.0, 7.0, 7.0] and len(server.asked) == 4


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="expected concurrency of at least 1, got 0"):
        Endpoint("http://localhost", concurrency=0)
    with pytest.raises(ValueError, match="expected time limits above 0 s"):
        TimeLimits(answer=0)
    assert endpoint_module.POLL_SECONDS <= 0.5
