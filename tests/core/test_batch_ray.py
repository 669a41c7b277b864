"""A batch on a real Ray cluster of two machines' worth of processes here, with one worker killed."""

import os
import sys

import pytest
from batch_runs import OPTIONS, check_whole, expected, finish, kill, lines, make_pictures, start, wait_for_lines

ray = pytest.importorskip("ray", reason="the package ray is missing: pip install -e '.[cluster]'")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters on Windows are experimental")


@pytest.fixture
def cluster(monkeypatch):
    """Environment that leads to a cluster of two nodes with one core each, which only this machine reaches."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "240")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from ray.cluster_utils import Cluster

    node = {
        "num_cpus": 1,
        "node_ip_address": "127.0.0.1",
        "object_store_memory": 80_000_000,
        "include_dashboard": False,
    }
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(**node)
    # By this variable alone, Ray keeps to 127.0.0.1 and does not take the machine's own address for it.
    yield {"RAY_ADDRESS": made.address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    made.shutdown()


def test_two_workers_of_which_one_is_killed(cluster, tmp_path, capsys, one_thread):
    folder, output = make_pictures(tmp_path / "in", 24), tmp_path / "out"
    wanted = expected(folder, tmp_path / "wanted", capsys)
    driver = start(folder, output, *OPTIONS, "--engine", "ray", "--num-workers", "2", **cluster)
    wait_for_lines(driver, output, 8)
    workers = {line["worker"] for line in lines(output) if "worker" in line}
    pid = int(lines(output)[-1]["worker"].rpartition(":")[2])
    assert 1 <= len(workers) <= 2 and pid not in (driver.pid, os.getpid())
    kill(pid)
    status, said = finish(driver)
    assert status == 0 and "it is tried again" in said, said
    # Ray adds a line of its own about the lost process.
    ours = [line for line in said.splitlines() if "(raylet)" not in line]
    assert len(ours) == 25 and "Traceback" not in said, said
    check_whole(output, wanted)


def test_address_where_no_cluster_is_gets_one_sentence(tmp_path):
    folder = make_pictures(tmp_path / "in", 1)
    driver = start(folder, tmp_path / "out", *OPTIONS, "--engine", "ray", RAY_ADDRESS="127.0.0.1:9")
    status, said = finish(driver)
    assert status == 2 and said.startswith("error: expected a Ray cluster at 127.0.0.1:9, could not join it"), said
    assert said.count("\n") == 1
