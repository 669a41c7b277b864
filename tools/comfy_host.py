"""Start a private ComfyUI with this pack in it and drive it over HTTP and WebSocket, as its own front end does."""

import json
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import torch
import websocket
from comfy_install import REPO, HostError, SetupError, comfy_root, install_packages
from comfy_prompt import graph_to_prompt

__all__ = [
    "REPO",
    "ComfyServer",
    "ExecutionError",
    "HostError",
    "Interrupted",
    "Progress",
    "SetupError",
    "comfy_root",
    "graph_to_prompt",
    "install_packages",
]

PACK_NAME = "ComfyUI-EAM"
NOT_PACK = {"output", "runs"}
START_SECONDS = 180
STOP_SECONDS = 10


class ExecutionError(HostError):
    """ComfyUI refused a prompt or a node failed; the message names the node's type."""


class Interrupted(HostError):
    """The running prompt was interrupted."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the node now running has come."""

    node_id: str
    node_type: str
    value: float
    maximum: float


class ComfyServer:
    """A ComfyUI process on loopback, with its own folder for inputs, outputs, user settings and custom nodes.

    The ComfyUI it runs is only read. Use as a context manager.

    Args:
        work_dir: the private folder; made if missing. The log is work_dir/server.log.
        flags: more of ComfyUI's own command-line flags.
    """

    def __init__(self, work_dir: Path, flags: tuple[str, ...] = ()) -> None:
        self.flags = flags
        self.work_dir = work_dir.resolve()
        self.log_path = self.work_dir / "server.log"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._start_up_log = ""
        self._http = requests.Session()
        self._http.trust_env = False  # a proxy of the user's must not see loopback

    def __enter__(self) -> "ComfyServer":
        """Start ComfyUI and wait until it answers.

        Raises:
            SetupError: COMFYUI_PATH does not name a ComfyUI.
            HostError: it ended or did not answer in time; the message carries the end of its log.
        """
        root = comfy_root()
        _link_pack(self.work_dir / "custom_nodes" / PACK_NAME)
        (self.work_dir / "user").mkdir(exist_ok=True)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(REPO / "tools" / "comfy_launch.py"), str(root), *self._options(port)]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.work_dir, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self._start_up_log = self._log()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process that was started, and only that one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()

    def wait(self) -> None:
        """Block until ComfyUI ends by itself."""
        if self._process:
            self._process.wait()

    def start_up_log(self) -> str:
        """Return what ComfyUI logged until it answered for the first time."""
        return self._start_up_log

    def object_info(self) -> dict[str, Any]:
        """Return every node's inputs and outputs."""
        return self._get("/object_info").json()

    def upload_image(self, path: Path) -> str:
        """Put a picture into the input folder; return the name LoadImage knows it by."""
        with path.open("rb") as file:
            answer = self._post("/upload/image", files={"image": (path.name, file)}, data={"overwrite": "true"})
        return answer.json()["name"]

    def queue(self, prompt: dict[str, Any], client_id: str = "") -> str:
        """Queue a prompt in API format and return its id.

        Raises:
            ExecutionError: ComfyUI found the prompt invalid.
        """
        body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        answer = self._post("/prompt", json=body, check=False)
        if answer.status_code == 400:
            raise ExecutionError(_refusal(answer.json()))
        answer.raise_for_status()
        return answer.json()["prompt_id"]

    def run(
        self,
        prompt: dict[str, Any],
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float = 600.0,
    ) -> dict[str, Any]:
        """Queue a prompt, follow it to its end and return its outputs.

        Args:
            prompt: in API format.
            on_progress: called whenever a node reports progress; it may call `interrupt`.
            timeout: seconds without any news after which to give up.

        Returns:
            {node id: {"images": [{"filename", "subfolder", "type"}, ...], ...}} for every node with outputs.

        Raises:
            ExecutionError: the prompt is invalid or a node failed.
            Interrupted: it was interrupted.
            HostError: ComfyUI ended or fell silent.
        """
        client_id = uuid.uuid4().hex
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        news = websocket.create_connection(address, timeout=timeout)
        try:
            prompt_id = self.queue(prompt, client_id)
            _follow(news, prompt, prompt_id, on_progress)
        except (OSError, websocket.WebSocketException) as error:
            raise HostError(f"ComfyUI stopped answering ({error}); its log ends:\n{self._log_tail()}") from error
        finally:
            news.close()
        return self._get(f"/history/{prompt_id}").json()[prompt_id]["outputs"]

    def interrupt(self) -> None:
        """Interrupt the prompt that is running."""
        self._post("/interrupt")

    def fetch(self, output: dict[str, str]) -> bytes:
        """Return the bytes of one file that a prompt's outputs name."""
        return self._get("/view", params=output).content

    def _options(self, port: int) -> list[str]:
        options = ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(self.work_dir)]
        # ComfyUI would otherwise keep its database beside its own code.
        options += ["--database-url", f"sqlite:///{self.work_dir / 'user' / 'comfyui.db'}", "--disable-api-nodes"]
        if not torch.cuda.is_available():
            options += ["--cpu", "--use-pytorch-cross-attention"]
        return [*options, *self.flags]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise HostError(f"ComfyUI ended while starting; its log ends:\n{self._log_tail()}")
            try:
                self._get("/system_stats")
                return
            except requests.RequestException:
                time.sleep(0.2)
        raise HostError(f"ComfyUI did not answer within {START_SECONDS} s; its log ends:\n{self._log_tail()}")

    def _get(self, path: str, **options: Any) -> requests.Response:
        answer = self._http.get(self.url + path, timeout=60, **options)
        answer.raise_for_status()
        return answer

    def _post(self, path: str, *, check: bool = True, **options: Any) -> requests.Response:
        answer = self._http.post(self.url + path, timeout=60, **options)
        if check:
            answer.raise_for_status()
        return answer

    def _log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def _log_tail(self, lines: int = 20) -> str:
        return "\n".join(self._log().splitlines()[-lines:])


def _follow(
    news: websocket.WebSocket,
    prompt: dict[str, Any],
    prompt_id: str,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Read messages until the prompt has left the queue; its history is complete only then."""
    failure: HostError | None = None
    while True:
        message = news.recv()
        if not isinstance(message, str):
            continue  # a preview picture
        event = json.loads(message)
        data = event.get("data", {})
        if data.get("prompt_id") != prompt_id:
            continue
        if event["type"] == "progress_state" and on_progress:
            for node_id, state in data["nodes"].items():
                if state["state"] == "running" and node_id in prompt:
                    on_progress(
                        Progress(
                            node_id=node_id,
                            node_type=prompt[node_id]["class_type"],
                            value=state["value"],
                            maximum=state["max"],
                        )
                    )
        elif event["type"] == "execution_error":
            failure = ExecutionError(f"{data['node_type']}: {data['exception_message'].strip()}")
        elif event["type"] == "execution_interrupted":
            failure = Interrupted(f"interrupted in {data['node_type']}")
        elif event["type"] == "executing" and data["node"] is None:
            if failure:
                raise failure
            return


def _refusal(answer: dict[str, Any]) -> str:
    """Say in one line why ComfyUI refused a prompt."""
    problems = [
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in answer["node_errors"].values()
        for error in node["errors"]
    ]
    return "; ".join(problems) or f"{answer['error']['message']} ({answer['error']['details']})"


def _link_pack(target: Path) -> None:
    """Show this repository as a folder of links, one for each entry a copied pack would have.

    One link to the repository itself would make a loop, as `target` may lie inside it.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for entry in REPO.iterdir():
        if entry.name.startswith(".") or entry.name in NOT_PACK:
            continue
        try:
            (target / entry.name).symlink_to(entry)
        except OSError:
            copy = shutil.copytree if entry.is_dir() else shutil.copy2
            copy(entry, target / entry.name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
