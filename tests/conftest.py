"""What all tests share: stand-ins for vision-language models."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def captioning_models() -> ModuleType:
    """Return captioning_models.py; test files cannot import their neighbours by name."""
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("captioning_models", Path(__file__).parent / "captioning_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make_torchvision_importable()
    return module
