"""Which files hold one set of weights: a single file, or the shards that an index lists; folders are diffusers'."""

import json
import re
from pathlib import Path

from .errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX_SUFFIX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")


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
    files = _listed(index) if index.is_file() else _numbered(index)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"expected the shard {missing[0]}{others} in {index.parent} beside the other parts of {index.name}, "
            "found none; download the whole set"
        )
    return files


def _listed(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not names:
            raise ValueError("it lists none")
        # Shards lie beside their index; only the last part of a name counts, so none can lead elsewhere.
        return sorted(index.parent / Path(name).name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"expected a list of shards in {index}, but it is damaged ({error}); download it again"
        ) from error


def _numbered(index: Path) -> list[Path]:
    """Do without an index: the shards' names tell how many there are."""
    found = _shards_beside(index)
    if not found:
        raise CheckpointError(f"expected a list of shards at {index}, found none; check the name and the folder")
    match = _SHARD.fullmatch(found[0].name)
    assert match
    stem, total = match["stem"], match["total"]
    return [index.with_name(f"{stem}-{number:05}-of-{total}.safetensors") for number in range(1, int(total) + 1)]


def _shards_beside(index: Path) -> list[Path]:
    folder = index.parent
    files = folder.glob("*.safetensors") if folder.is_dir() else ()
    return sorted(file for file in files if file.name != set_name(file.name) == index.name)
