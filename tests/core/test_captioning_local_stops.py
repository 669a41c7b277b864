"""Local vision-language models tell of each token, and stop within a second whatever they are at."""

import threading
import time

import pytest
import torch
from local_model_chats import SHORT, small
from safetensors.torch import load_file

from eam_core.captioning import local
from eam_core.captioning.local import LocalModel
from eam_core.captioning.messages import GenerateConfig


class Stopped(Exception):
    pass


def test_each_token_is_told_of_and_telling_can_stop(local_models):
    model, told = local_models["minicpmv4_6"], []
    model.generate([small()], GenerateConfig(max_tokens=20, seed=1), lambda *numbers: told.append(numbers))
    # None but repeated, as it is between tokens.
    assert list(dict.fromkeys(told)) == [(i, 20) for i in range(21)]

    def stop(tokens, most):
        told.append(tokens)
        if tokens == 3:
            raise Stopped

    told.clear()
    with pytest.raises(Stopped):
        model.generate([small()], SHORT, stop)
    assert list(dict.fromkeys(told)) == [0, 1, 2, 3]


class Patient:
    """Someone who waits, notes when they are told of tokens, and stops after a second."""

    def __init__(self):
        self.start = time.monotonic()
        self.told, self.times = [], [self.start]

    def __call__(self, *numbers):
        self.told.append(numbers)
        self.times.append(time.monotonic())
        if self.times[-1] - self.start > 1:
            raise Stopped

    def check(self):
        """Nobody had to wait: neither between two words nor from the stop to the end."""
        self.times.append(time.monotonic())
        assert max(after - before for before, after in zip(self.times, self.times[1:])) < 0.8
        assert set(self.told) == {(0, 16)}


def slow_layers(monkeypatch, seconds):
    """Make every linear layer slow: 15 to 26 of them before the first token. Return when each began."""
    forward, begun = torch.nn.Linear.forward, []

    def slow(*args):
        begun.append(time.monotonic())
        time.sleep(seconds)
        return forward(*args)

    monkeypatch.setattr(torch.nn.Linear, "forward", slow)
    return begun


@pytest.mark.parametrize("kind", ("minicpmv4_6", "qwen2_5_vl", "smolvlm"))
def test_reading_a_prompt_can_be_stopped(local_models, kind, monkeypatch):
    (expected,) = local_models[kind].generate([small()], SHORT)
    with monkeypatch.context() as patch:
        begun, patient = slow_layers(patch, 0.15), Patient()
        with pytest.raises(Stopped):
            local_models[kind].generate([small()], SHORT, patient)
        patient.check()
        stopped = time.monotonic()
        time.sleep(1)
        assert 1 <= len(begun) < 12 and begun[-1] < stopped + 0.5, "work went on when nobody waited any more"
    assert local_models[kind].generate([small()], SHORT) == [expected]


def test_a_single_long_step_does_not_keep_who_stops(local_models, monkeypatch):
    model = local_models["qwen2_5_vl"]
    with monkeypatch.context() as patch:
        begun = slow_layers(patch, 3)
        for _ in range(2):  # the second waits for the step that was begun, and can leave while it waits
            patient = Patient()
            with pytest.raises(Stopped):
                model.generate([small()], SHORT, patient)
            patient.check()
        assert len(begun) == 1


def test_reading_weights_can_be_stopped(local_folders, local_models, monkeypatch):
    model, read = LocalModel(local_folders["qwen2_5_vl"], device="cpu"), []
    original = torch.Tensor.to

    def slow(tensor, *args, **options):
        time.sleep(0.2)  # as from a slow disk
        read.append(tensor.shape)
        return original(tensor, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", slow)
        patient = Patient()
        with pytest.raises(Stopped):
            model.generate([small()], SHORT, patient)
        patient.check()
        time.sleep(0.7)  # for threads that have begun with a tensor
        so_far = len(read)
        time.sleep(0.5)
        assert 0 < so_far == len(read) < len(load_file(local_folders["qwen2_5_vl"] / "model.safetensors"))
    assert model.generate([small()], SHORT) == local_models["qwen2_5_vl"].generate([small()], SHORT)


def test_half_read_weights_are_no_model(local_folders, local_models, monkeypatch):
    """Transformers swallows errors of single tensors, also the one that stops the reading."""
    model, patient = LocalModel(local_folders["qwen2_5_vl"], device="cpu"), Patient()

    def swallow(kind, *args, **options):
        loaded = load(kind, *args, **options)
        if patient.told:
            with pytest.raises(Exception, match=""):
                while True:
                    time.sleep(0.1)
                    torch.zeros(1)
        return loaded

    load = local.load
    with monkeypatch.context() as patch:
        patch.setattr(local, "load", swallow)
        with pytest.raises(Stopped):
            model.generate([small()], SHORT, patient)
        patient.told.clear()
        loads = []
        patch.setattr(local, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
        assert model.generate([small()], SHORT) == local_models["qwen2_5_vl"].generate([small()], SHORT)
    assert any("ImageTextToText" in str(args[0]) for args in loads), "took what was left of the first reading"


def test_a_fingerprint_can_be_stopped(local_folders):
    def stop(*numbers):
        raise Stopped(*numbers)

    with pytest.raises(Stopped) as stopped:
        LocalModel(local_folders["smolvlm"], device="cpu").prepare(stop)
    assert stopped.value.args == (0, 0)


def test_who_waits_is_told_in_their_own_thread_and_mode(local_models):
    model, told = local_models["qwen2_5_vl"], set()
    with torch.inference_mode():
        (answer,) = model.generate([small()], SHORT, lambda *_: told.add(threading.current_thread()))
        modes = model._workshop.do(lambda watch: torch.is_inference_mode_enabled(), None, 0)
    assert told == {threading.current_thread()}
    assert modes and not model._workshop.do(lambda watch: torch.is_inference_mode_enabled(), None, 0)
    assert model.generate([small()], SHORT) == [answer]
