"""What a control remembers of tiles: the same numbers whatever runs together, within a budget, gone when forgotten."""

import pytest
import torch

from eam_core.lr_memory import LRMemories, memory_bytes
from eam_core.model.control import LRMemory

HOUR = 10**9
BOXES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 8)]


class Control:
    """Remembers LR latents [N, C, h, w] as two blocks of keys and values; counts the tiles."""

    def __init__(self) -> None:
        self.num = 0

    def remember(self, lr: torch.Tensor) -> list[LRMemory]:
        self.num += len(lr)
        return [LRMemory(factor * lr[:, :, None], -factor * lr[:, :, None]) for factor in (1.0, 2.0)]


def tiles(*indices: int, batch: int = 2) -> tuple[torch.Tensor, list]:
    """Return LR latents of tiles, tile-major, told apart by their numbers, and their boxes."""
    lr = torch.stack([torch.full((3, 8, 8), 10.0 * i + sample) for i in indices for sample in range(batch)])
    return lr, [BOXES[i] for i in indices]


def state(memories: LRMemories, control: Control, *indices: int, limit: int = HOUR, **changes):
    lr, boxes = tiles(*indices)
    given = {"num_bytes": 4 * lr.nbytes, "limit": lambda: limit} | changes
    return memories.state(lr, boxes, control.remember, **given)


def check(memory, *indices: int, repeats: int = 1) -> None:
    expected = Control().remember(tiles(*indices)[0].repeat(repeats, 1, 1, 1))
    for index, block in enumerate(expected):
        assert torch.equal(memory[index].k, block.k) and torch.equal(memory[index].v, block.v)


def test_tiles_are_found_again_whatever_they_run_with():
    memories, control = LRMemories(), Control()
    check(state(memories, control, 0), 0)
    check(state(memories, control, 1, 2), 1, 2)
    assert control.num == 6
    for indices in ((0,), (1,), (1, 2), (2, 1), (0, 1), (0, 1, 2), (2, 0)):
        check(state(memories, control, *indices), *indices)
        check(state(memories, control, *indices, repeats=2), *indices, repeats=2)
    assert control.num == 6


def test_a_pass_that_has_its_tiles_twice_computes_them_once():
    memories, control = LRMemories(), Control()
    check(state(memories, control, 0, 1, repeats=2), 0, 1, repeats=2)
    assert control.num == 4


def test_what_is_kept_is_not_copied():
    memories, control = LRMemories(), Control()
    first = state(memories, control, 1)
    again, doubled = state(memories, control, 1), state(memories, control, 1, repeats=2)
    assert again[0].k.data_ptr() == first[0].k.data_ptr()
    assert doubled[1].v.shape[0] == 4
    one = memories.state(*tiles(0, batch=1), control.remember, num_bytes=1, limit=lambda: HOUR, repeats=2)
    kept = memories.state(*tiles(0, batch=1), control.remember, num_bytes=1, limit=lambda: HOUR)
    assert one[0].k.data_ptr() == kept[0].k.data_ptr()


def test_keys_tell_apart_what_boxes_do_not():
    memories, control = LRMemories(), Control()
    state(memories, control, 0, key="one")
    state(memories, control, 0, key="two")
    assert control.num == 4
    state(memories, control, 0, key="one")
    assert control.num == 4


def test_the_budget_is_kept():
    memories, control = LRMemories(), Control()
    each = 4 * tiles(0)[0].nbytes
    check(state(memories, control, 0, limit=2 * each), 0)
    check(state(memories, control, 1, limit=2 * each), 1)
    assert state(memories, control, 2, limit=2 * each) is None
    assert memories.num_bytes == 2 * each and control.num == 4
    check(state(memories, control, 2, limit=2 * each, pays=lambda: True), 2)
    assert memories.num_bytes == 2 * each
    check(state(memories, control, 0, limit=0), 0)


def test_a_run_that_forgot_keeps_no_more():
    memories, control = LRMemories(), Control()
    state(memories, control, 0)
    assert memories.forget() is True and memories.forget() is False
    assert state(memories, control, 0) is None
    assert not memories.kept and memories.num_bytes == 0


def test_a_failure_leaves_nothing_half_kept():
    def fails(lr):
        raise torch.OutOfMemoryError

    memories, control = LRMemories(), Control()
    with pytest.raises(torch.OutOfMemoryError):
        memories.state(*tiles(0), fails, num_bytes=8, limit=lambda: HOUR)
    assert not memories.kept and memories.num_bytes == 0
    check(state(memories, control, 0), 0)


@pytest.mark.parametrize("lr_attention", ["self", "cross"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_is_known_before_it_is_taken(tiny, lr_attention, dtype):
    model = tiny.model(lr_attention).to(dtype)
    lr = torch.randn(2, 16, 10, 13, dtype=dtype)
    memory = model.remember(lr)
    assert memory_bytes(model.control.params, lr) == sum(part.nbytes for block in memory for part in block)


@torch.no_grad()
@pytest.mark.parametrize("lr_attention", ["self", "cross"])
def test_the_network_reads_joined_memory_as_its_own(tiny, lr_attention):
    """Tiles kept one by one, read together and twice over, as in a pass with both guidance halves."""
    model, generator = tiny.model(lr_attention), torch.Generator().manual_seed(1)
    lr, noisy = torch.randn(2, 2, 16, 8, 8, generator=generator)
    context, pooled = torch.randn(4, 4, 32, generator=generator), torch.randn(4, 24, generator=generator)
    memories, times = LRMemories(), torch.full((4,), 500.0)
    given = {"num_bytes": 1, "limit": lambda: HOUR}
    for index in range(2):
        memories.state(lr[index : index + 1], BOXES[index : index + 1], model.remember, **given)
    kept = memories.state(lr, BOXES[:2], model.remember, **given, repeats=2)
    got = model(noisy.repeat(2, 1, 1, 1), times, context, pooled, kept)
    expected = model(noisy.repeat(2, 1, 1, 1), times, context, pooled, lr.repeat(2, 1, 1, 1))
    assert (got - expected).norm() / expected.norm() < 1e-6  # sums in another order
