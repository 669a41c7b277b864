"""The folder of a local vision-language model: what is in it, checked before any weights are read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..errors import EAMError
from ..pretrained import check_share, import_package
from ..pretrained_checks import check_folder
from ..vision import transformers_class
from ..weight_files import read_weights
from ..weight_sets import listed_shards
from .messages import CaptionError
from .model_fingerprint import fingerprint

GOOD_MODELS = "MiniCPM-V 4.6, Qwen2.5-VL, Qwen3-VL or SmolVLM"
_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class ModelFolder:
    """Hold what is known of a model without its weights.

    Attributes:
        path: the folder.
        config: fields of its config.json.
        weights: its safetensors files.
    """

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    def identify(self, tick: Callable[[], None]) -> str:
        """Return class, folder name and a fingerprint of settings and weights.

        Args:
            tick: called between reads; may raise to stop.

        Raises:
            CaptionError: a file cannot be read.
        """
        named = self.config.get("architectures")
        kind = named[0] if isinstance(named, list) and named else self.config["model_type"]
        return f"{kind} {self.path.name} {fingerprint(self.path, self.weights, tick)}"

    @cached_property
    def numbers(self) -> int:
        """Return how many numbers the weight files hold; reads their headers only.

        Raises:
            CaptionError: a file is damaged.
        """
        try:
            tensors = [tensor for file in self.weights for tensor in read_weights(file, device="meta").values()]
        except EAMError as error:
            raise CaptionError(str(error)) from error
        return sum(tensor.numel() for tensor in tensors)

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Return the size of all weights in one dtype."""
        return self.numbers * dtype.itemsize


def open_folder(path: Path) -> ModelFolder:
    """Look at a folder.

    Raises:
        CaptionError: it holds no whole model in safetensors.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_dir():
        raise CaptionError(
            f"expected the folder of a vision-language model at {path}, found none; "
            f"nothing is downloaded for you, so download one ({GOOD_MODELS}) and name its folder"
        )
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CaptionError(_without_config(path))
    try:
        check_folder(path, "a vision-language model")
    except EAMError as error:
        raise CaptionError(str(error)) from error
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CaptionError(f"expected a readable {config_file}, got {error.strerror}; check its rights") from error
    if not isinstance(config.get("model_type"), str):
        raise CaptionError(
            f"expected a transformers model in {path}, but its config.json names no model_type; choose {GOOD_MODELS}"
        )
    return ModelFolder(path, config, _weights(path))


def model_config(folder: ModelFolder) -> Any:
    """Return transformers' config of a folder's model.

    Raises:
        CaptionError: transformers is missing or too old for it, it needs code of its own, or it sees no pictures.
    """
    package = transformers()
    kind = folder.config["model_type"]
    if kind not in package_class("CONFIG_MAPPING"):
        if folder.config.get("auto_map"):
            raise CaptionError(
                f"expected a model that transformers {package.__version__} runs itself, but {folder.path.name} "
                f"({kind}) needs Python code from its folder, which is never run; choose {GOOD_MODELS}"
            )
        raise CaptionError(
            f"expected a transformers that knows {kind}, found {package.__version__}; "
            "run pip install -U transformers, or choose another model"
        )
    config = load(package_class("AutoConfig"), folder, "a model's config")
    if type(config) not in package_class("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING"):
        raise CaptionError(
            f"expected a model that answers about pictures, but {folder.path.name} ({kind}) is none; "
            f"choose {GOOD_MODELS}"
        )
    return config


def refuse_oversized(kind: Any, folder: ModelFolder, config: Any, what: str) -> None:
    """Refuse settings that ask for a network much larger than the weight files.

    Raises:
        CaptionError: they do, or no network can be made of them.
    """
    try:
        check_share(lambda: kind.from_config(config), folder.numbers, folder.path, what)
    except EAMError as error:
        raise CaptionError(str(error)) from error


def transformers() -> Any:
    """Import transformers.

    Raises:
        CaptionError: it is missing or broken.
    """
    try:
        return import_package("transformers")
    except EAMError as error:
        raise CaptionError(
            "expected the package transformers to run a local vision-language model, but it cannot be imported "
            f"({_first_words(error.__cause__ or error)}); "
            'run pip install ".[caption]" in the folder of this pack, or use an endpoint'
        ) from error


def package_class(name: str) -> Any:
    """Return something of transformers by name.

    Raises:
        CaptionError: it cannot be imported, or this transformers is too old to have it.
    """
    package = transformers()
    try:
        return transformers_class(name)
    except AttributeError as error:
        raise CaptionError(
            f"expected a transformers with {name}, found {package.__version__}; run pip install -U transformers"
        ) from error
    # Transformers imports torchvision with some of its classes: what is wrong with that surfaces here, as any error.
    except Exception as error:
        raise CaptionError(
            f"expected transformers to import {name}, but it cannot ({_first_words(error.__cause__ or error)}); "
            "see that transformers, torchvision and torch fit each other"
        ) from error


def load(kind: Any, folder: ModelFolder, what: str, **options: Any) -> Any:
    """Load one of transformers' auto classes from a folder; nothing is downloaded and no code of the folder is run.

    Raises:
        CaptionError: it cannot be loaded; `what` names it.
    """
    try:
        return kind.from_pretrained(str(folder.path), local_files_only=True, trust_remote_code=False, **options)
    except ImportError as error:
        raise CaptionError(
            f"expected the packages that {what} of {folder.path.name} needs, but {_first_words(error)}; "
            "install them, and see that torchvision fits torch"
        ) from error
    # OSError, ValueError, KeyError, SafetensorError, RuntimeError...: transformers raises any of them for a bad folder.
    except Exception as error:
        raise CaptionError(
            f"expected {what} in {folder.path}, but it cannot be loaded ({_first_words(error)}); "
            "download the folder again"
        ) from error


def _weights(path: Path) -> tuple[Path, ...]:
    index = path / _INDEX
    if index.is_file():
        try:
            names = [file.name for file in listed_shards(index)]
        except EAMError as error:
            raise CaptionError(str(error)) from error
    else:
        names = [_WEIGHTS]
    missing = [name for name in names if not (path / name).is_file()]
    if not missing:
        return tuple(path / name for name in names)
    if index.is_file():
        raise CaptionError(
            f"expected {len(names)} weight files in {path}, but {missing[0]} and {len(missing) - 1} more are missing; "
            "download the folder again"
        )
    if _any(path, "*.bin", "*.pt", "*.pth"):
        raise CaptionError(
            f"expected weights in safetensors in {path}, found pickled ones only, which are never opened; "
            "download the model's safetensors files"
        )
    raise CaptionError(f"expected {_WEIGHTS} in {path}, found none; download the whole folder of the model")


def _without_config(path: Path) -> str:
    if _any(path, "*.gguf"):
        return (
            f"expected a transformers folder, found GGUF files in {path}; download the model's safetensors folder, "
            "or serve the GGUF with llama.cpp or Ollama and give its address"
        )
    return (
        f"expected a vision-language model in {path}, but it has no config.json; "
        f"name the folder that config.json and the safetensors files lie in, e.g. of {GOOD_MODELS}"
    )


def _any(path: Path, *patterns: str) -> bool:
    return any(next(path.glob(pattern), None) for pattern in patterns)


def _first_words(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
