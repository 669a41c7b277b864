"""The pictures of an evaluation: results of several methods with their originals and inputs, matched by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eam_core.errors import ImageError
from eam_core.images import list_images
from eam_core.picture_files import open_picture, orientation

# EXIF orientations that swap width and height.
_TURNED = (5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Paths by picture, that is by file name without suffix.

    Attributes:
        images: pictures in natural order.
        sr: results by method, then by picture.
        hr: originals, empty without them.
        lr: inputs, empty without them.
    """

    images: tuple[str, ...]
    sr: dict[str, dict[str, Path]]
    hr: dict[str, Path]
    lr: dict[str, Path]

    def files(self, method: str, image: str) -> list[Path | None]:
        """Return result, original and input of one picture."""
        return [self.sr[method][image], self.hr.get(image), self.lr.get(image)]


def match_pictures(
    sr: Mapping[str, Path], *, hr: Path | None = None, lr: Path | None = None, square: int | None = None
) -> Pictures:
    """List folders and see that everything fits, by the files' headers alone.

    Args:
        sr: folder of results by method; all must hold the same pictures.
        hr: folder of originals: the same pictures in the same sizes.
        lr: folder of inputs, which may hold more pictures: of one shape with the results and not larger.
        square: short edge that all results must have, in pixels.

    Raises:
        ImageError: pictures are missing, cannot be read, or their sizes do not fit.
    """
    methods = {method: _by_name(folder) for method, folder in sr.items()}
    first_folder, first = next(iter(sr.values())), next(iter(methods.values()))
    if not first:
        raise ImageError(f"{first_folder}: expected a folder of pictures, found none in it; check the path.")
    originals = _by_name(hr) if hr else {}
    inputs = _by_name(lr) if lr else {}
    others = [(folder, methods[method]) for method, folder in sr.items()] + ([(hr, originals)] if hr else [])
    for folder, found in others:
        _same_names(folder, found, first_folder, first)
        _same_names(first_folder, first, folder, found)
    if lr:
        _same_names(lr, inputs, first_folder, first)
    pictures = Pictures(images=tuple(first), sr=methods, hr=originals, lr={name: inputs[name] for name in first if lr})
    for image in pictures.images:
        _check_sizes(pictures, image, square)
    return pictures


def _by_name(folder: Path) -> dict[str, Path]:
    paths = list_images(folder)
    check_names(paths)
    return {path.stem: path for path in paths}


def check_names(paths: Sequence[Path]) -> None:
    """Refuse pictures whose names differ in their endings alone: results belong to inputs by name.

    Raises:
        ImageError: there are such pictures.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise ImageError(
                f"{path}: expected one picture of each name, found {found[path.stem].name} as well; rename one of them"
            )
        found[path.stem] = path


def _same_names(folder: Path, found: dict[str, Path], other: Path, expected: dict[str, Path]) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise ImageError(
            f"{folder}: expected the same pictures as in {other}, {len(missing)} of {len(expected)} are missing "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})."
        )


def _size(path: Path) -> tuple[int, int]:
    with open_picture(path) as (image, _):
        width, height = image.size
        return (height, width) if orientation(image.info) in _TURNED else (width, height)


def _check_sizes(pictures: Pictures, image: str, square: int | None) -> None:
    reference = pictures.hr.get(image) or next(iter(pictures.sr.values()))[image]
    width, height = _size(reference)
    for of_method in pictures.sr.values():
        got = _size(of_method[image])
        if got != (width, height):
            raise ImageError(
                f"{of_method[image]}: expected the size of {reference}, {width} x {height}, got {got[0]} x {got[1]}."
            )
    if square and min(width, height) != square:
        raise ImageError(f"{reference}: expected a short edge of {square} pixels, got {width} x {height}; resize it.")
    if image in pictures.lr:
        lr_width, lr_height = _size(pictures.lr[image])
        scale = width / lr_width
        # A width that is no whole multiple leaves the scale, and so the height, uncertain by a pixel of the input.
        if scale < 1 or abs(height - lr_height * scale) > scale:
            raise ImageError(
                f"{pictures.lr[image]}: expected an input of the shape of {reference}, {width} x {height}, and not "
                f"larger, got {lr_width} x {lr_height}."
            )
