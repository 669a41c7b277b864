"""Optional packages (diffusers, transformers) and what they load from local folders, with errors for people."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError, EAMError
from .pretrained_checks import check_folder, count_numbers

# Of the numbers that the files hold: embeddings that two layers share are stored once.
_MAX_SHARE = 2
_SMALL = 2**20  # numbers that a network makes itself, such as tables of positions


def import_package(name: str) -> Any:
    """Import an optional package.

    Raises:
        EAMError: it is missing or broken.
    """
    try:
        return import_module(name)
    # A package that does not fit its neighbours fails with whatever error its import trips over.
    except Exception as error:
        raise EAMError(
            f"expected the package {name} for SD3's own parts, but it cannot be imported ({error}); "
            "run pip install comfyui-eam[sd3]"
        ) from error


def load_module(kind: Any, folder: Path, what: str, **options: Any) -> Any:
    """Load a network from a local folder: safetensors only, no code of the folder, nothing is downloaded.

    Args:
        kind: class of transformers or diffusers.
        folder: as they save it.
        what: names it for people.
        options: of `from_pretrained`.

    Raises:
        CheckpointError: the folder holds something else, or asks for more than its files hold.
    """
    check_folder(folder, what)
    held = count_numbers(folder, what)
    check_share(_guarded(folder, what, lambda: _made_from(kind, folder)), held, folder, what)
    options = {"local_files_only": True, "use_safetensors": True, **options}
    return _guarded(folder, what, lambda: kind.from_pretrained(str(folder), **_trust(kind), **options))


def check_share(make: Callable[[], Any], held: int, folder: Path, what: str) -> None:
    """Refuse settings that ask for a network much larger than its files; it is made without taking memory.

    Args:
        make: makes the network.
        held: numbers in its files.
        folder: where they lie.
        what: names it for people.

    Raises:
        CheckpointError: it is too large, or cannot be made.
    """

    def count() -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in make().parameters())

    wanted = _guarded(folder, what, count)
    if wanted > _MAX_SHARE * held + _SMALL:
        raise CheckpointError(
            f"expected {what} in {folder}, but its config.json asks for {wanted} numbers and the files hold {held}; "
            "download the folder again"
        )


def load_tokenizer(kind: Any, folder: Path, what: str, **options: Any) -> Any:
    """Load a tokenizer from a local folder; no code of the folder is run, nothing is downloaded.

    Raises:
        CheckpointError: the folder holds something else.
    """
    check_folder(folder, what)
    options = {"local_files_only": True, "trust_remote_code": False, **options}
    return _guarded(folder, what, lambda: kind.from_pretrained(str(folder), **options))


def _guarded(folder: Path, what: str, load: Any) -> Any:
    try:
        return load()
    # transformers and diffusers raise OSError, ValueError, KeyError, SafetensorError... for what is wrong in a folder.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"expected {what} in {folder}, but it cannot be loaded ({first_line}); download the folder again"
        ) from error


def _trust(kind: Any) -> dict[str, bool]:
    # Models of diffusers know no such switch, as they never run code of a folder.
    return {"trust_remote_code": False} if hasattr(kind, "config_class") else {}


def _made_from(kind: Any, folder: Path) -> Callable[[], Any]:
    """Return what makes a network of the folder's settings."""
    if hasattr(kind, "config_class"):  # transformers
        config = kind.config_class.from_pretrained(str(folder), local_files_only=True)
        return lambda: kind(config)
    config = kind.load_config(str(folder), local_files_only=True)
    return lambda: kind.from_config(config)
