"""Where the well-known archives of high-resolution pictures keep their files."""

from dataclasses import dataclass
from pathlib import Path

from train.data.config import DataError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Say which files of a data set are its HR training pictures; folders of LR pictures beside them do not match.

    Attributes:
        patterns: of paths below the data set's folder; the first that matches anything counts.
        first: how many pictures, by number, belong to the training set; None: all.
    """

    patterns: tuple[str, ...]
    first: int | None = None


LAYOUTS = {
    "DIV2K": Layout(patterns=("DIV2K_train_HR/*.png",)),
    "Flickr2K": Layout(patterns=("Flickr2K_HR/*.png",)),
    "LSDIR": Layout(patterns=("HR/train/*/*.png", "HR/*000/*.png", "*000/*.png")),
    "OST": Layout(patterns=("OutdoorSceneTrain_v2/*/*.png", "OutdoorSceneTrain_v2/*.png")),
    # EAM trains on the first 10,000 of FFHQ's 70,000.
    "FFHQ": Layout(patterns=("images1024x1024/*/*.png", "images1024x1024/*.png", "*.png"), first=10_000),
}


def layout_name(name: str) -> str | None:
    """Return a layout's name as it is written here, whatever its case; None if there is none."""
    return next((known for known in LAYOUTS if known.lower() == name.lower()), None)


def layout_pictures(name: str, folder: Path) -> list[Path]:
    """List the HR training pictures of a well-known data set.

    Args:
        name: a key of LAYOUTS.
        folder: the data set's folder, the one above it, or the folder of HR pictures itself.

    Returns:
        Paths in order of their names; for FFHQ of their numbers.

    Raises:
        DataError: the folder holds none where the layout expects them.
    """
    layout = LAYOUTS[name]
    for pattern in layout.patterns:
        for base in _bases(folder, name, pattern):
            found = [path for path in base.glob(pattern) if path.is_relative_to(folder) and path.is_file()]
            found = sorted(path for path in found if not path.name.startswith("."))
            if found:
                return sorted(found, key=_number)[: layout.first] if layout.first else found
    expected = " or ".join(f"{folder / pattern}" for pattern in layout.patterns)
    raise DataError(f"{name}={folder}: expected pictures in {expected}, found none; give the folder that holds them.")


def _bases(folder: Path, name: str, pattern: str) -> list[Path]:
    inside = [folder.parent] if folder.name == pattern.split("/")[0] else []
    return [folder, folder / name, *inside]


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits or 0), path.name
