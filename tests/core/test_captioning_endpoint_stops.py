"""A host stops the wait for an endpoint within a second, whatever it is waiting for."""

import threading
import time

import pytest
import torch
from captioning_server import ChatServer, Raw, json_reply
from endpoint_chats import CONFIG, conversation

from eam_core.captioning.captioner import CaptionConfig, SubjectCaptioner
from eam_core.captioning.endpoint import Endpoint

pytestmark = pytest.mark.usefixtures("no_caption_settings")


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
