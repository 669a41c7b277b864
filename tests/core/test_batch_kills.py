"""Batches that are killed with SIGKILL: every picture exactly once in the output, and nothing done twice.

With EAM_SLOW=1: 50 kills over 200 pictures; EAM_KILL_LOG names a file for its course.
"""

import os
import signal
import sys
import time

import pytest
from batch_runs import OPTIONS, Killer, check_whole, children, expected, finish, hashes, lines, make_pictures, start
from batch_runs import wait_for_lines as wait

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers in /proc")


@pytest.fixture(autouse=True)
def one_thread(one_thread):
    """Hashes hold for one number of threads."""


def test_kills_at_random_lose_nothing_and_repeat_nothing(tmp_path, capsys):
    folder, output = make_pictures(tmp_path / "in", 24), tmp_path / "out"
    wanted = expected(folder, tmp_path / "wanted", capsys)
    killer = Killer(folder, output, seed=time.time_ns())
    for kind in ("worker", "driver", "all"):
        assert killer.kill(kind, 8)
    killer.finish()
    check_whole(output, wanted)


@pytest.mark.skipif(not os.environ.get("EAM_SLOW"), reason="50 kills take six minutes and more; set EAM_SLOW=1")
def test_fifty_kills_over_two_hundred_pictures(tmp_path, capsys):
    folder, output = make_pictures(tmp_path / "in", 200), tmp_path / "out"
    wanted = expected(folder, tmp_path / "wanted", capsys)
    began, log_path = time.monotonic(), os.environ.get("EAM_KILL_LOG")

    def log(text):
        if log_path:
            with open(log_path, "a") as file:
                file.write(f"{time.monotonic() - began:7.1f} s  {text}\n")

    seed = time.time_ns()
    log(f"seed {seed}")
    killer = Killer(folder, output, seed, log)
    while sum(killer.counts.values()) < 50:
        killer.kill(killer.random.choice(["worker", "driver", "all"]), 8)
        assert len(hashes(output) if output.exists() else ()) < 200, "finished before the kills were: raise the number"
    killer.finish()
    check_whole(output, wanted)
    log(f"{dict(killer.counts)}, {killer.starts} starts: 200 of 200 pictures once, equal to those of upscale")


def test_stop_by_signal_is_clean_and_the_next_start_goes_on(tmp_path, capsys):
    folder, output = make_pictures(tmp_path / "in", 12), tmp_path / "out"
    wanted = expected(folder, tmp_path / "wanted", capsys)
    driver = start(folder, output, *OPTIONS, "--num-workers", "2")
    wait(driver, output, 5)
    workers = children(driver.pid)
    # A second batch on the same folder is refused while this one lives, even if it does not answer.
    driver.send_signal(signal.SIGSTOP)
    status, said = finish(start(folder, output, *OPTIONS))
    driver.send_signal(signal.SIGCONT)
    assert status == 2 and said.count("\n") == 1 and "no other batch" in said, said
    driver.send_signal(signal.SIGTERM)
    status, said = finish(driver)
    assert status == 143 and "start again to go on" in said, said
    assert len(workers) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    assert set(hashes(output)) < set(wanted) and lines(output)[-1]["state"] == "stopped"
    status, said = finish(start(folder, output, *OPTIONS, "--num-workers", "2"))
    assert status == 0 and "were finished before" in said, said
    check_whole(output, wanted)
