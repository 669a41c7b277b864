"""One worker of a batch: loads the model once, restores a picture, and writes it when the driver has noted its hash.

As a program (`python -m eam_core.batch_worker`) it takes lines of JSON from its input and answers on its output.
"""

import hashlib
import json
import os
import queue
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from .batch_remote import open_folder
from .errors import EAMError, FolderError
from .images import encode_image, load_image
from .job_model import ModelChoice
from .jobs import check_room, restore_job
from .restore_config import RestoreConfig

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """What every worker of a batch is told; plain values that can be sent to another machine.

    Attributes:
        input: path or URL of the pictures' folder.
        output: path or URL of the results' folder.
        config: settings of each restoration.
        model: which one.
        threads: of torch on the CPU; 0 leaves that to the machine that it runs on.
        weights: the model's fingerprint where the driver runs; a worker refuses other weights. Empty: not checked.
    """

    input: str
    output: str
    config: RestoreConfig
    model: ModelChoice
    threads: int
    weights: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "WorkerPlan":
        """Read what `text` wrote."""
        fields = json.loads(text)
        config, model = RestoreConfig(**fields.pop("config")), ModelChoice(**fields.pop("model"))
        return cls(config=config, model=model, **fields)


class PictureWorker:
    """Answer the driver's messages, one at a time.

    | message | answer's state |
    |---|---|
    | {"do": "load"} | ready, with notes; or unusable: no worker could load this model |
    | {"do": "restore", "name", "target"} | restored, with hashes, size and seconds |
    | {"do": "write"} | written: the last restored picture has its name |

    Any may be answered by failed (this picture cannot be done), stopped (no picture can be any more) or crashed (this
    worker is of no more use), each with a sentence.
    """

    def __init__(self, plan: str) -> None:
        """Take a plan as `WorkerPlan.text` writes it; nothing is loaded yet."""
        self._plan = WorkerPlan.from_text(plan)
        self._target, self._data = "", b""

    def handle(self, message: Message) -> Message:
        """Answer one message."""
        todo: dict[str, Callable[[Message], Message]] = {
            "load": self._load,
            "restore": self._restore,
            "write": self._write,
        }
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            answer = self._guarded(todo[message["do"]], message)
        said = list(dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning))
        return {**answer, "warnings": said} if said else answer

    def _guarded(self, act: Callable[[Message], Message], message: Message) -> Message:
        try:
            return act(message)
        except FolderError as error:
            return {"state": "stopped", "error": str(error)}
        except EAMError as error:
            return {"state": "unusable" if message["do"] == "load" else "failed", "error": str(error)}
        except Exception as error:  # such as a GPU that fails: this process may be of no more use
            return {"state": "crashed", "error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}

    def _load(self, message: Message) -> Message:
        import torch

        if self._plan.threads:
            torch.set_num_threads(self._plan.threads)
        self._check_weights()
        self._input, self._output = open_folder(self._plan.input), open_folder(self._plan.output)
        self._restorer, notes = self._plan.model.load(self._plan.config)
        return {"state": "ready", "worker": f"{socket.gethostname()}:{os.getpid()}", "notes": notes}

    def _check_weights(self) -> None:
        """Refuse weights other than the driver's: their results would go under its settings."""
        wanted = self._plan.weights
        if not wanted:
            return
        found = self._plan.model.fingerprint()
        name = next((name for name in wanted if wanted[name] != found.get(name)), None)
        if name:
            raise EAMError(
                f"expected the driver's weights on every machine, but on {socket.gethostname()} {name} is another file "
                f"({getattr(self._plan.model, name)}); copy the driver's there"
            )

    def _restore(self, message: Message) -> Message:
        name, target, config = message["name"], message["target"], self._plan.config
        start = time.monotonic()
        content = self._input.read(name)
        picture = load_image(f"{self._input.url}/{name}", content)
        room = self._output.path and self._output.path / Path(target).name
        check_room(picture, Path(name), room, config.scale)
        result = restore_job(self._restorer, picture, target, config)
        self._target, self._data = target, encode_image(result, target).getvalue()
        height, width = result.rgb.shape[-2:]
        return {
            "state": "restored",
            "input_sha256": hashlib.sha256(content).hexdigest(),
            "output_sha256": hashlib.sha256(self._data).hexdigest(),
            "output_bytes": len(self._data),
            "width": width,
            "height": height,
            "seconds": round(time.monotonic() - start, 3),
        }

    def _write(self, message: Message) -> Message:
        self._output.write(self._target, self._data)
        self._data = b""
        return {"state": "written"}


def _read_lines(source: IO[str], lines: "queue.Queue[str]") -> None:
    for line in source:
        lines.put(line)
    # The driver is gone, so nobody would note what is done; a file that is being written gets its name later or never.
    os._exit(0)


def main() -> None:
    """Serve one driver; the first line is the plan."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer
    lines: queue.Queue[str] = queue.Queue()
    source = os.fdopen(os.dup(0), encoding="utf-8")
    threading.Thread(target=_read_lines, args=(source, lines), daemon=True).start()
    worker = PictureWorker(lines.get())
    while True:
        answers.write(json.dumps(worker.handle(json.loads(lines.get()))) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.exit(main())
