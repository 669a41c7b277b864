"""Which files hold one set of weights: a single file, or the shards that an index lists; folders are diffusers'."""

import json
import re
from pathlib import Path
from typing import Any

from .errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX_SUFFIX = ".index.json"
_MAX_INDEX_BYTES = 2**25
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})\.safetensors")


def set_name(name: str) -> str:
    """Return the name that all shards of a set share, that of their index; any other name as it is."""
    match = _SHARD.fullmatch(name)
    return f"{match['stem']}.safetensors{INDEX_SUFFIX}" if match else name


def weight_set(path: str | Path) -> list[Path]:
    """Return the files of one set of weights, all of which are there.

    Args:
        path: a weight file, one shard of a set, a set's index, or a folder as diffusers saves a transformer, whole or
            in shards; a pipeline's folder is searched for its `transformer`.

    Raises:
        CheckpointError: a folder without weights, a damaged index, or shards that are missing.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        path = folder / WEIGHTS
        if not path.is_file():
            path = path.with_name(WEIGHTS + INDEX_SUFFIX)
            if not (path.is_file() or _shards_beside(path)):
                raise CheckpointError(
                    f"expected a diffusers transformer folder with {WEIGHTS} in it, but {folder} has none; "
                    "name the folder that holds the transformer's safetensors"
                )
    index = path.with_name(set_name(path.name))
    if not index.name.endswith(INDEX_SUFFIX):
        return [path]
    files = listed_shards(index) if index.is_file() else _numbered(index)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"expected the shard {missing[0]}{others} in {index.parent} beside the other parts of {index.name}, "
            "found none; download the whole set"
        )
    return files


def listed_shards(index: Path) -> list[Path]:
    """Return the files that an index lists, whether they are there or not.

    Raises:
        CheckpointError: it is damaged, or lists something else than safetensors files beside it.
    """
    try:
        with index.open("rb") as file:
            text = file.read(_MAX_INDEX_BYTES + 1)
        if len(text) > _MAX_INDEX_BYTES:
            raise ValueError(f"it is longer than {_MAX_INDEX_BYTES} bytes")
        names = set(json.loads(text.decode())["weight_map"].values())
        if not names:
            raise ValueError("it lists none")
        for name in names:
            _check_shard_name(name)
        return sorted(index.parent / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"expected a list of shards in {index}, but it is damaged ({error}); download it again"
        ) from error


def _check_shard_name(name: Any) -> None:
    """Refuse what is no plain name: shards lie beside their index, and no name may lead elsewhere."""
    if not isinstance(name, str) or not name.isprintable() or set(name) & set("/\\:"):
        raise ValueError(f"it lists {ascii(name)[:80]}, which is no name of a file beside it")
    if not name.endswith(".safetensors"):
        raise ValueError(f"it lists {ascii(name)[:80]}, and only .safetensors files are opened")


def _numbered(index: Path) -> list[Path]:
    """Do without an index: the shards' names tell how many there are."""
    found = _shards_beside(index)
    if not found:
        raise CheckpointError(f"expected a list of shards at {index}, found none; check the name and the folder")
    match = _SHARD.fullmatch(found[0].name)
    assert match
    stem, total = match["stem"], match["total"]
    if not int(match["number"]) <= int(total) or not int(total):
        raise CheckpointError(
            f"expected a shard's number and how many there are, got {found[0].name}; download the whole set"
        )
    return [index.with_name(f"{stem}-{number:05}-of-{total}.safetensors") for number in range(1, int(total) + 1)]


def _shards_beside(index: Path) -> list[Path]:
    folder = index.parent
    files = folder.glob("*.safetensors") if folder.is_dir() else ()
    return sorted(file for file in files if file.name != set_name(file.name) == index.name)
