"""Workers of a batch on this machine: processes that lines of JSON go to and from, or this process itself."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from .batch_worker import Message, PictureWorker


class LocalEngine:
    """See `batch.Engine`.

    Args:
        plan: as `WorkerPlan.text` writes it.
        environments: what each worker's environment has besides this one's; their number is that of the workers.
    """

    def __init__(self, plan: str, environments: Sequence[Mapping[str, str]]) -> None:
        self.num_workers = len(environments)
        self._plan, self._environments = plan, environments
        self._answers: queue.Queue[tuple[int, subprocess.Popen[str], Message]] = queue.Queue()
        self._processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, slot: int) -> None:
        """See `batch.Engine`."""
        self._end(slot)
        # Ctrl-C in a terminal goes to the whole group: the driver alone shall hear it and stop its workers.
        apart: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.batch_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, **self._environments[slot]},
            **apart,
        )
        self._processes[slot] = process
        threading.Thread(target=self._listen, args=(slot, process), daemon=True).start()
        self._tell(process, self._plan)

    def send(self, slot: int, message: Message) -> None:
        """See `batch.Engine`."""
        self._tell(self._processes[slot], json.dumps(message))

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        """See `batch.Engine`."""
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._answers.get(timeout=timeout))
            while True:
                found.append(self._answers.get_nowait())
        # What a replaced process said last is of no interest.
        return [(slot, answer) for slot, process, answer in found if self._processes.get(slot) is process]

    def close(self) -> None:
        """See `batch.Engine`."""
        for slot in list(self._processes):
            self._end(slot)

    def _tell(self, process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin
        with contextlib.suppress(OSError):  # it died; `_listen` says so
            process.stdin.write(line + "\n")
            process.stdin.flush()

    def _listen(self, slot: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        error = "the worker could not be listened to"
        try:
            for line in process.stdout:
                self._answers.put((slot, process, _answer(line)))
            code = process.wait()
            error = f"the worker was killed by signal {-code}" if code < 0 else f"the worker ended with status {code}"
        except ValueError as wrong:  # half a line, other bytes than UTF-8, or what a stray print left
            error = f"the worker's answer could not be read ({' '.join(str(wrong).split())[:200]})"
            process.kill()
        finally:
            self._answers.put((slot, process, {"state": "died", "error": error}))

    def _end(self, slot: int) -> None:
        process = self._processes.pop(slot, None)
        if process:
            process.kill()
            process.wait()
            assert process.stdin
            with contextlib.suppress(OSError):
                process.stdin.close()


def _answer(line: str) -> Message:
    answer = json.loads(line)
    if not isinstance(answer, dict) or not isinstance(answer.get("state"), str):
        raise ValueError(f"expected an answer, got {line[:80]!r}")
    return answer


class InlineEngine:
    """One worker in this very process: for folders that no other can see, such as memory://."""

    num_workers = 1

    def __init__(self, plan: str) -> None:
        self._plan = plan
        self._answers: list[tuple[int, Message]] = []

    def start(self, slot: int) -> None:
        """See `batch.Engine`."""
        self._worker = PictureWorker(self._plan)

    def send(self, slot: int, message: Message) -> None:
        """See `batch.Engine`."""
        self._answers.append((slot, self._worker.handle(message)))

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        """See `batch.Engine`."""
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        """Nothing to stop."""


def worker_environments(num_workers: int, device: str, threads: int) -> list[dict[str, str]]:
    """Return what each worker's environment has of its own: its share of cores, and its GPU.

    Args:
        num_workers: 0 takes the usual number, see `worker_threads`.
        device: as the user named it; "auto" and "cuda" give each worker one GPU where there are any.
        threads: of each worker.
    """
    gpus = _gpus(device)
    return [
        {"OMP_NUM_THREADS": str(threads), **({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})}
        for number in range(num_workers or _usual_number(device))
    ]


def worker_threads(num_workers: int, device: str) -> int:
    """Return a worker's share of this machine's cores.

    Args:
        num_workers: 0 takes the usual number: one per GPU, without GPUs one per two cores.
        device: see `worker_environments`.
    """
    return max(1, _cores() // (num_workers or _usual_number(device)))


def _usual_number(device: str) -> int:
    from .device import named_device

    # Apple's machines have one GPU, which one worker fills.
    return len(_gpus(device)) or (max(1, _cores() // 2) if named_device(device) == "cpu" else 1)


def _cores() -> int:
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdecimal() and int(named):
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(device: str) -> list[str]:
    """Return the GPUs that workers take turns on, by the names that CUDA_VISIBLE_DEVICES has; none for the CPU."""
    if device not in ("auto", "cuda"):
        return []
    import torch

    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(number) for number in range(count)]
