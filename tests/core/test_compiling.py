"""torch.compile as an option: the same picture, and one sentence where a machine cannot."""

import dataclasses
import itertools

import pytest
import torch

from eam_core.compiling import CompileError
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from eam_core.tile_run import NumbersError

CONFIG = RestoreConfig(tile=64, overlap=16, tile_batch=1)


def num_at_once(restorer, image):
    """Return how many tiles went through the model in each call, where that is not set."""
    done = [0]
    restorer.restore(image, dataclasses.replace(CONFIG, tile_batch=0), lambda now, total: done.append(now))
    return {later - sooner for sooner, later in itertools.pairwise(done)}


def test_a_compiled_model_gives_the_same_picture_in_tiles_of_other_shapes_too():
    restorer, image = Restorer.embedded(), torch.rand(1, 3, 24, 24)
    other = dataclasses.replace(CONFIG, tile=96)
    before, before_other = restorer.restore(image, CONFIG), restorer.restore(image, other)
    assert max(num_at_once(restorer, image)) > 1
    calls = []

    def backend(graph, inputs):
        return lambda *args: calls.append(len(args)) or graph.forward(*args)

    restorer.compile(CONFIG, backend=backend)
    calls.clear()
    assert torch.equal(restorer.restore(image, CONFIG), before)
    assert calls, "the compiled graph did not run"
    assert torch.allclose(restorer.restore(image, other), before_other, atol=1e-6)
    assert num_at_once(restorer, image) == {1}, "compiled for one"


def test_errors_of_the_model_keep_their_own_words():
    restorer = Restorer.embedded()
    with torch.no_grad():
        restorer.model.base.final_layer.linear.bias.fill_(float("nan"))
    with pytest.raises(NumbersError, match="weights may be damaged"):
        restorer.compile(CONFIG, backend="eager")


def test_a_machine_without_compiler_says_so_in_one_sentence_and_still_restores():
    restorer, image = Restorer.embedded(), torch.rand(1, 3, 16, 16)

    def backend(graph, inputs):
        raise RuntimeError("no g++ here\nlong trace")

    with pytest.raises(CompileError, match=r"no g\+\+ here.*leave out --compile") as error:
        restorer.compile(CONFIG, backend=backend)
    assert "\n" not in str(error.value)
    assert restorer.restore(image, CONFIG).isfinite().all()
