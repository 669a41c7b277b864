"""How the graph opens and loads local captioners, on stand-ins for ComfyUI's modules; needs no server."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_host import REPO

from eam_core.captioning.messages import GenerateConfig

GB = 2**30


class StandInHost:
    """What the nodes ask of ComfyUI's memory management, for a GPU."""

    def __init__(self) -> None:
        self.total, self.loaded, self.error = 8 * GB, [], None

    def text_encoder_device(self) -> torch.device:
        return torch.device("cuda")

    def text_encoder_offload_device(self) -> torch.device:
        return torch.device("cpu")

    def is_device_cpu(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def get_total_memory(self, device: torch.device) -> int:
        return self.total

    def load_models_gpu(self, models: list[Any], memory_required: int, force_full_load: bool) -> None:
        if self.error:
            raise self.error
        self.loaded.append((models, memory_required, force_full_load))


class StandInPatcher:
    """A ModelPatcher that moves nothing."""

    def __init__(self, module: torch.nn.Module, load_device: torch.device, offload_device: torch.device) -> None:
        self.module, self.load_device, self.detached = module, load_device, False

    def model_size(self) -> int:
        return 3 * GB

    def detach(self) -> None:
        self.detached = True


class StandInModel:
    """A local model that is never read."""

    folder = SimpleNamespace(path=SimpleNamespace(name="stand-in"))
    required_bytes = 4 * GB

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def read(self, on_token: Any, max_tokens: int) -> torch.nn.Module:
        on_token(0, max_tokens)
        return torch.nn.Linear(2, 2)

    def generate(self, conversations: list[Any], config: GenerateConfig, on_token: Any) -> list[str]:
        return [str(each) for each in conversations]


@pytest.fixture
def host() -> StandInHost:
    return StandInHost()


@pytest.fixture
def captioner(host: StandInHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module with stand-ins around it."""
    stand_ins = {
        "comfy": {},
        "comfy.model_management": {name: getattr(host, name) for name in dir(host) if not name.startswith("_")},
        "comfy.model_patcher": {"ModelPatcher": StandInPatcher},
        "folder_paths": {
            "models_dir": r"C:\ComfyUI\models",
            "folder_names_and_paths": {"LLM"},
            "get_folder_paths": lambda kind: [r"D:\shared\LLM"],
        },
        "eam_stand_in": {"__path__": [str(REPO)]},
        "eam_stand_in.nodes": {"__path__": [str(REPO / "nodes")]},
        "eam_stand_in.nodes.patcher": {"managed": StandInPatcher},
    }
    for name, content in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    yield importlib.import_module("eam_stand_in.nodes.captioner")
    for name in [name for name in sys.modules if name.startswith("eam_stand_in.")]:
        del sys.modules[name]


CONFIG = GenerateConfig(max_tokens=32)


def test_weights_are_loaded_whole_with_room_for_the_work(captioner: ModuleType, host: StandInHost) -> None:
    told: list[tuple[int, int]] = []
    managed = captioner.ManagedModel(StandInModel())
    for _ in range(2):
        assert managed.generate(["a"], CONFIG, lambda *numbers: told.append(numbers)) == ["a"]
    assert [(memory, whole) for _, memory, whole in host.loaded] == [(GB, True)] * 2
    assert told == [(0, 32)], "read twice, or without a chance to interrupt"


def test_too_small_a_gpu_is_refused_before_weights_are_read(captioner: ModuleType, host: StandInHost) -> None:
    host.total = 2 * GB
    with pytest.raises(Exception, match=r"expected 4.0 GB of free memory on cuda for stand-in, found 2.0 GB; choose a"):
        captioner.ManagedModel(StandInModel()).generate(["a"], CONFIG, lambda *_: pytest.fail("read"))
    assert not host.loaded


def test_memory_that_runs_out_is_one_sentence(captioner: ModuleType, host: StandInHost) -> None:
    managed = captioner.ManagedModel(StandInModel())
    host.error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    with pytest.raises(
        Exception, match=r"expected 4.0 GB of free memory on cuda for stand-in, but it ran out"
    ) as error:
        managed.generate(["a"], CONFIG, lambda *_: None)
    assert type(error.value).__name__ == "CaptionError"
    assert managed.patcher.detached
    host.error = None
    assert managed.generate(["a"], CONFIG, lambda *_: None) == ["a"]


def everywhere(kind: type) -> type:
    """Paths of a system where every folder exists."""
    return type("Everywhere", (kind,), {"is_dir": lambda self: True, "resolve": lambda self: self})


@pytest.mark.parametrize(
    "source",
    [
        r"C:\Windows",
        "C:/Windows",
        r"\Windows",
        r"..\..\user",
        r"LLM\..\..\user",
        r"C:..\user",
        "D:/shared",
        r"E:models",
        r"\\server\share",
        r"C:\ComfyUI\models2",
        r"C:\ComfyUI\models\..\user",
    ],
)
def test_folders_elsewhere_on_windows(captioner: ModuleType, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioner, "Path", everywhere(PureWindowsPath))
    with pytest.raises(Exception, match="folders elsewhere cannot be named"):
        captioner.model_folder(source)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (r"LLM\MiniCPM", r"C:\ComfyUI\models\LLM\MiniCPM"),
        ("LLM/MiniCPM", r"C:\ComfyUI\models\LLM\MiniCPM"),
        ("D:/shared/LLM/MiniCPM", r"D:\shared\LLM\MiniCPM"),
    ],
)
def test_folders_on_windows(captioner: ModuleType, source: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioner, "Path", everywhere(PureWindowsPath))
    assert str(captioner.model_folder(source)) == found


@pytest.mark.parametrize("source", ["/etc", "../user", "LLM/../../user", r"..\..\user", "/models-2", "~/../.."])
def test_folders_elsewhere(captioner: ModuleType, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioner, "Path", everywhere(PurePosixPath))
    monkeypatch.setattr(captioner.folder_paths, "models_dir", "/models")
    monkeypatch.setattr(captioner.folder_paths, "get_folder_paths", lambda kind: ["/shared/LLM"])
    with pytest.raises(Exception, match="folders elsewhere cannot be named"):
        captioner.model_folder(source)
    assert str(captioner.model_folder("LLM/x")) == "/models/LLM/x"


def test_where_a_missing_folder_belongs(captioner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = everywhere(PurePosixPath)
    kind.is_dir = lambda self: False
    monkeypatch.setattr(captioner, "Path", kind)
    monkeypatch.setattr(captioner.folder_paths, "models_dir", "/models")
    monkeypatch.setattr(captioner.folder_paths, "get_folder_paths", lambda kind: ["/models/LLM", "/shared/LLM"])
    with pytest.raises(Exception, match=r"got 'LLM/x'; put the model at /models/LLM/x or /shared/LLM/x$"):
        captioner.model_folder("LLM/x")
