"""Workers of a batch on a Ray cluster: one actor each, on whichever machine has a free GPU or cores."""

import contextlib
import os
import signal
import socket
import time
from typing import Any

from .batch_worker import Message, PictureWorker
from .errors import EAMError


class RayEngine:
    """See `batch.Engine`.

    Joins the cluster that RAY_ADDRESS names or that runs on this machine; without one it starts one of this machine
    alone, which nothing outside can reach.

    Args:
        plan: as `WorkerPlan.text` writes it.
        num_workers: 0 takes one per GPU of the cluster, without GPUs one per two cores.

    Raises:
        EAMError: Ray is missing, or its cluster cannot be reached.
    """

    def __init__(self, plan: str, num_workers: int) -> None:
        self._ray = ray = _connect()
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = [int(machine["CPU"]) for machine in machines if machine.get("CPU")] or [1]
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
        self.num_workers = num_workers or gpus or max(1, sum(cores) // 2)
        # A worker lies on one machine, and its share of the cores is also its number of threads.
        share = 1 if gpus else max(1, min(min(cores), sum(cores) // self.num_workers))
        # More workers than GPUs share them.
        options = {"num_gpus": min(1.0, gpus / self.num_workers), "num_cpus": share, "max_restarts": 0}
        self._actor: Any = ray.remote(PictureWorker).options(**options)
        self._plan = plan
        self._actors: dict[int, Any] = {}
        self._answers: dict[Any, int] = {}

    def start(self, slot: int) -> None:
        """See `batch.Engine`."""
        self._end(slot)
        self._actors[slot] = self._actor.remote(self._plan)

    def send(self, slot: int, message: Message) -> None:
        """See `batch.Engine`."""
        self._answers[self._actors[slot].handle.remote(message)] = slot

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        """See `batch.Engine`."""
        waiting = list(self._answers)
        if not waiting:
            time.sleep(timeout)
            return []
        self._ray.wait(waiting, num_returns=1, timeout=timeout)
        ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [(self._answers.pop(reference), self._answer(reference)) for reference in ready]

    def close(self) -> None:
        """See `batch.Engine`."""
        for slot in list(self._actors):
            self._end(slot)
        self._ray.shutdown()

    def _answer(self, reference: Any) -> Message:
        try:
            return self._ray.get(reference)
        # A worker's own errors come as answers, so it is Ray that speaks: a lost process or machine, a missing package.
        except Exception as error:
            said = str(error).strip().splitlines()
            return {
                "state": "died",
                "error": f"its worker was lost ({type(error).__name__}: {said[0] if said else ''})",
            }

    def _end(self, slot: int) -> None:
        actor = self._actors.pop(slot, None)
        self._answers = {reference: of for reference, of in self._answers.items() if of != slot}
        if actor is not None:
            with contextlib.suppress(Exception):  # it is dead already
                self._ray.kill(actor)


def _connect() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray announces in a warning otherwise
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        import ray
    except ImportError as error:
        raise EAMError("expected the package ray for --engine ray, found none; install it: pip install ray") from error
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    # Where Ray starts processes itself, it would end this one on SIGTERM without a word.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_address(address)
        try:
            ray.init(address=address or "auto", **quiet)
        except ConnectionError:
            if address:
                raise
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise EAMError(
            f"expected a Ray cluster at {address or 'this machine'}, could not join it ({said}); start it, or correct "
            "RAY_ADDRESS"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)
    return ray


def _check_address(address: str) -> None:
    """Look whether anybody listens: Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
