"""What a folder for transformers or diffusers may ask for, checked before either of them opens it.

Their own switches keep them from running Python of the folder and from pickles under their usual names. A list of
shards may still name a pickle or a file elsewhere, a setting may name code to fetch, and a size in config.json costs
memory whether or not there are weights of that size.
"""

import json
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .safetensors_header import HeaderError, read_header
from .size_limits import MAX_BLOCKS
from .weight_sets import INDEX_SUFFIX, listed_shards

_MAX_CONFIG_BYTES = 2**20
_MAX_DEPTH = 32
# Positions and vocabularies go to some ten millions; nothing that is a size is larger.
_MAX_NUMBER = 2**31
_LAYERS = ("num_layers", "num_hidden_layers", "num_decoder_layers", "n_layers", "depth", "layers_per_block")
# Which code computes attention and experts: a name with a slash is a repository that transformers would fetch.
_CODE = ("attn_implementation", "experts_implementation")


def check_folder(folder: Path, what: str) -> None:
    """Refuse a folder whose settings or lists of weights ask for what no model needs.

    Args:
        folder: as transformers or diffusers save a model or a tokenizer.
        what: names it for people.

    Raises:
        CheckpointError: the folder is missing, or one of its files breaks a rule.
    """
    if not folder.is_dir():
        raise CheckpointError(f"expected {what} in {folder}, found no such folder; check the path")
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"expected {what} in {folder}, but its adapter_config.json would load another one from elsewhere; "
            "merge the adapter into its model first"
        )
    config = folder / "config.json"
    if config.exists():
        _check_config(config)
    for index in sorted(folder.glob(f"*.safetensors{INDEX_SUFFIX}")):
        listed_shards(index)


def count_numbers(folder: Path, what: str) -> int:
    """Return how many numbers the folder's safetensors hold; their headers are checked, nothing else is read.

    Raises:
        CheckpointError: there are none, or one is damaged.
    """
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if not files:
        raise CheckpointError(
            f"expected {what} in {folder}, found no safetensors file; pickles (.bin, .pt) are never opened, so get the "
            "model's safetensors"
        )
    total = 0
    for file in files:
        try:
            entries = read_header(file).values()
        except (HeaderError, OSError) as error:
            raise CheckpointError(
                f"expected a whole safetensors file, but {file.name} is damaged or truncated ({error}); "
                "download it again"
            ) from error
        total += sum((entry.end - entry.start) // entry.dtype.itemsize for entry in entries)
    return total


def _check_config(path: Path) -> None:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_CONFIG_BYTES + 1)
        if len(text) > _MAX_CONFIG_BYTES:
            raise ValueError(f"it is longer than {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(text.decode())
        if not isinstance(config, dict):
            raise ValueError("it is no list of settings")
        _check_value("", config, 0)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"expected a model's settings in {path}, but it is damaged or made to do harm ({error}); "
            "get the model from its authors"
        ) from error


def _check_value(name: str, value: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_value(key, inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(name, inner, depth + 1)
    elif isinstance(value, str):
        if name.strip("_").removesuffix("_internal") in _CODE and "/" in value:
            raise ValueError(f"{name} names code from elsewhere")
    elif type(value) is int:
        limit = MAX_BLOCKS if name in _LAYERS else _MAX_NUMBER
        if abs(value) > limit:
            raise ValueError(f"{ascii(name)[:40]} is beyond {limit}")
