"""Write a test set under its name: originals, degraded inputs, and what is known of each picture.

    python -m train.prepare_test_set photos --out DIR
    python -m train.prepare_test_set folder --source MY_PICTURES --out DIR
    python -m train.prepare_test_set realsr --source DOWNLOADED --out DIR

Made inputs lie in DIR/lr-plain, lr-light and lr-stock, given ones in DIR/lr, originals in DIR/hr, all as PNG; pictures
that belong together share their name. DIR/test_set.json says where each comes from. A run that was cut off goes on.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from eam_core.console import show_any_text
from eam_core.degradation import MAX_SCALE, PRESETS, degrade
from eam_core.errors import EAMError
from eam_core.images import check_size, save_image
from train.evaluation.test_sets import SETS, Item, SetError, SetSpec
from train.run_folder import write_text

DESCRIPTION = "test_set.json"


def prepare(
    name: str, out: Path, *, source: Path | None = None, scale: int = 4, seed: int = 0, packages: Path
) -> dict[str, Any]:
    """Write a test set, or what is missing of it.

    Args:
        name: one of SETS.
        out: folder for it; empty, or begun by an earlier run with the same settings.
        source: the user's folder, for the sets that are not made from packages.
        scale: HR edge over LR edge, a whole number in 1..8.
        seed: picture i is degraded with seed + i.
        packages: folder that keeps fetched packages.

    Returns:
        What test_set.json holds: name, scale, seed, folders, complete, pictures.

    Raises:
        SetError: the source is missing or not what the set's publishers describe, or `out` holds something else.
    """
    spec = SETS[name]
    _check(name, spec, source, scale)
    settings = {"name": name, "scale": scale, "seed": seed}
    if source is None and (finished := _finished(out, settings)):
        return finished
    items = _items(name, spec, source or packages, scale)
    folders = list(_outputs(items[0], spec, scale, seed))
    pictures = [{"stem": item.stem, "origin": item.origin, "licence": item.licence or spec.licence} for item in items]
    description = settings | {"folders": folders, "complete": False, "pictures": pictures}
    _check_folder(out, description)
    _write(out, description)
    for index, item in enumerate(tqdm(items, desc=name, unit="picture", disable=None)):
        for folder, make in _outputs(item, spec, scale, seed + index).items():
            path = out / folder / f"{item.stem}.png"
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                save_image(make(), path)
    description["complete"] = True
    _write(out, description)
    return description


def _check(name: str, spec: SetSpec, source: Path | None, scale: int) -> None:
    if scale not in range(1, MAX_SCALE + 1):
        raise SetError(f"--scale: expected a whole number from 1 to {MAX_SCALE}, got {scale}; 4 is usual")
    if spec.source and source is None:
        raise SetError(f"{name}: expected --source DIR, got none; {spec.source}")
    if source is not None and not spec.source:
        raise SetError(f"{name}: expected no --source, got {source}; its photographs come from packages")
    if source is not None and not source.is_dir():
        raise SetError(f"--source: expected a folder, got {source}; {spec.source}")


def _items(name: str, spec: SetSpec, folder: Path, scale: int) -> list[Item]:
    items = list(spec.items(folder, scale))
    count = spec.count or max(1, len(items))
    if len(items) != count:
        raise SetError(f"{name}: expected {count} pictures in {folder}, got {len(items)}; {spec.source}")
    stems: set[str] = set()
    for item in items:
        if item.stem in stems:
            raise SetError(f"{folder}: expected one picture of each name, got two {item.stem!r}; rename one")
        stems.add(item.stem)
    return items


def _check_folder(out: Path, description: dict[str, Any]) -> None:
    """Refuse a folder that holds something else than a part of this very set."""
    begun = _read(out)
    if begun is None and any((out / folder).exists() for folder in description["folders"]):
        raise SetError(f"{out}: expected a new folder or one begun for this set, found others' pictures; name another")
    if begun is not None and begun | {"complete": False} != description:
        raise SetError(
            f"{out}: expected this set with the same settings and pictures, found a set {begun.get('name')!r} that "
            "differs; choose another folder"
        )


def _outputs(item: Item, spec: SetSpec, scale: int, seed: int) -> dict[str, Callable[[], Tensor]]:
    """Say how to make each file of a picture, by folder; the original is read once for all of them."""
    outputs: dict[str, Callable[[], Tensor]] = {}
    if item.lr is not None:
        outputs["lr"] = partial(_given, item, scale)
    if item.hr is not None:
        hr = outputs["hr"] = cache(item.hr)
        for preset in spec.presets:
            outputs[f"lr-{preset}"] = partial(_degraded, item.stem, hr, scale, preset, seed)
    return outputs


def _degraded(stem: str, hr: Callable[[], Tensor], scale: int, preset: str, seed: int) -> Tensor:
    height, width = hr().shape[-2:]
    check_size(height // scale, width // scale, name=f"{stem}, reduced {scale} times")
    return degrade(hr(), scale, PRESETS[preset], [seed])


def _given(item: Item, scale: int) -> Tensor:
    assert item.lr
    lr = item.lr()
    if item.hr is not None:
        (height, width), (hr_height, hr_width) = lr.shape[-2:], item.hr().shape[-2:]
        if (hr_height, hr_width) != (height * scale, width * scale):
            raise SetError(
                f"{item.stem}: expected an HR picture of {scale} times the LR picture's {width} x {height}, got "
                f"{hr_width} x {hr_height}; check the version of the data set"
            )
    return lr


def _read(out: Path) -> dict[str, Any] | None:
    path = out / DESCRIPTION
    if not path.exists():
        return None
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetError(f"{path}: expected JSON, got something else ({error}); delete the folder") from error
    if not isinstance(description, dict):
        raise SetError(f"{path}: expected an object, got {type(description).__name__}; delete the folder")
    return description


def _finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    begun = _read(out)
    if begun is None or not begun.get("complete") or any(begun.get(key) != settings[key] for key in settings):
        return None
    paths = (out / folder / f"{picture['stem']}.png" for folder in begun["folders"] for picture in begun["pictures"])
    return begun if all(path.exists() for path in paths) else None


def _write(out: Path, description: dict[str, Any]) -> None:
    write_text(out / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; exit status 2 with one sentence on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS, help="which test set")
    parser.add_argument("--out", type=Path, required=True, help="folder for the test set")
    parser.add_argument("--source", type=Path, help="folder with the pictures, for every set but photos")
    parser.add_argument("--scale", type=int, default=4, help="HR edge over LR edge (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="picture i is degraded with seed + i (default: %(default)s)"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/photos"), help="folder that keeps the packages")
    args = parser.parse_args(argv)
    try:
        done = prepare(args.name, args.out, source=args.source, scale=args.scale, seed=args.seed, packages=args.cache)
    except EAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(done['pictures'])} pictures in {', '.join(done['folders'])}")
    return 0


if __name__ == "__main__":
    show_any_text()
    sys.exit(main())
