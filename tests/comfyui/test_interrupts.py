"""Interrupts and many prompts leave nothing behind: no memory, no stale state, the same pictures to the bit.

A few of each here; 100 interrupts and 300 prompts with EAM_SLOW=1. `tests/bench/soak.py` records the same.
"""

import os

from comfy_host import ComfyServer
from soak_runs import draw, growth, interrupt_cycles, memory, soak, unload

SLOW = bool(os.environ.get("EAM_SLOW"))
MOST_GROWTH = 0.02


def test_interrupts_leave_neither_memory_nor_state(server: ComfyServer, photos: None) -> None:
    count, warm_up = (100, 20) if SLOW else (5, 2)
    cycles = interrupt_cycles(server, count, warm_up=warm_up)
    assert cycles.interrupted == count and not cycles.changed
    assert growth(one.tidied for one in cycles.memory) < MOST_GROWTH
    kept = [(one.tensors, one.tensor_bytes, one.patchers, one.pack_objects) for one in cycles.memory]
    assert set(kept) == {kept[0]}, "something of the pack, or a tensor, stays with each interrupt"


def test_many_settings_leave_neither_memory_nor_state(server: ComfyServer, photos: None) -> None:
    prompts, settings, every = (300, 60, 10) if SLOW else (10, 6, 5)
    result = soak(server, prompts, settings=settings, every=every)
    assert result.runs == prompts and not result.failed and not result.changed
    after_warm_up = result.memory[len(result.memory) // 3 :]
    assert growth(one.tidied for one in after_warm_up) < MOST_GROWTH
    kept = [(one.tensors, one.tensor_bytes, one.patchers, one.pack_objects) for one in after_warm_up]
    assert set(kept) == {kept[0]}, "something of the pack, or a tensor, stays with each prompt"


def test_the_measure_sees_a_leak(server: ComfyServer) -> None:
    """Four megabytes with each prompt are found, by the process's memory and by its tensors."""
    found = []
    for number in range(6):
        server.run({"1": {"class_type": "TestLeak", "inputs": {"number": number}}})
        found.append(memory(server))
    assert growth(one.tidied for one in found) > 0.5 * MOST_GROWTH
    assert found[-1].tensor_bytes - found[0].tensor_bytes == 5 * 2**22


def test_settings_are_drawn_alike(server: ComfyServer) -> None:
    """A setting's number stands for one prompt, and its neighbours for others."""
    assert draw(server, 3) == draw(server, 3) != draw(server, 4)
    unload(server)
    assert memory(server).loaded == 0
