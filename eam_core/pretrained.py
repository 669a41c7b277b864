"""Optional packages (diffusers, transformers) and what they load from local folders, with errors for people."""

from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import CheckpointError, EAMError


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


def load_pretrained(kind: Any, folder: Path, what: str, **options: Any) -> Any:
    """Load a module or tokenizer from a local folder; `what` names it for people.

    Raises:
        CheckpointError: the folder holds something else.
    """
    try:
        return kind.from_pretrained(str(folder), **options)
    # transformers and diffusers raise OSError, ValueError, KeyError, SafetensorError... for what is wrong in a folder.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"expected {what} in {folder}, but it cannot be loaded ({first_line}); download the folder again"
        ) from error
