"""What all tests share: how several processes divide them, stand-ins for vision-language models."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
# What takes longest comes first, so that no process is left with it at the end.
FOLDERS = ["browser", "comfyui", "training", "core"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With -n and --dist loadgroup, a file stays in one process, and so do all pages: they share a server."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    place = {item: item.path.relative_to(HERE) for item in items}
    for item in items:
        folder = place[item].parts[0]
        item.add_marker(pytest.mark.xdist_group(folder if folder == "browser" else place[item].as_posix()))
    items.sort(key=lambda item: FOLDERS.index(folder) if (folder := place[item].parts[0]) in FOLDERS else len(FOLDERS))


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a pytest whose tests xdist 3.8 cannot group: every process would start the servers of every file."""
    if config.getoption("dist", "no") == "loadgroup" and pytest.version_tuple[:2] >= (9, 2):
        raise pytest.UsageError(
            f"expected a pytest below 9.2, got {pytest.__version__}; install what pyproject.toml says"
        )


@pytest.fixture(scope="session")
def captioning_models() -> ModuleType:
    """Return captioning_models.py; test files cannot import their neighbours by name."""
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("captioning_models", Path(__file__).parent / "captioning_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make_torchvision_importable()
    return module
