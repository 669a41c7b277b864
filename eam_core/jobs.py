"""What the command line shall do: which file becomes which, and whether each can before any model is loaded."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DiskError, EAMError, ImageError
from .folder_names import Saver, target_names
from .folder_results import is_gone, is_lasting
from .images import OUTPUT_SUFFIXES, Picture, check_output_path, check_size, list_images, load_image

if TYPE_CHECKING:
    from .denoiser import Progress
    from .pipeline import Restorer
    from .restore_config import RestoreConfig


def pair_files(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Pair every input file with its output file.

    Args:
        source: a file, or a folder whose pictures are taken in natural order.
        target: a file to write, or a folder; names are kept as `target_names`
            says, formats that cannot be written become PNG.

    Raises:
        ImageError: there is nothing to read, or a result would replace its input.
        DiskError: the output folder cannot be written.
    """
    if not source.is_dir():
        target = target / _writable_name(source) if target.is_dir() else target
        check_output_path(target)
        if target.exists() and source.exists() and target.samefile(source):
            raise ImageError(f"{target}: expected a file other than the input; choose another name")
        _check_folder(target.parent)
        return [(source, target)]
    sources = list_images(source)
    if not sources:
        raise ImageError(f"{source}: expected a folder with pictures in it, found none; check the path")
    if target.exists() and not target.is_dir():
        raise ImageError(f"{target}: expected a folder, because the input is one, got a file; name a folder")
    if target.is_dir() and target.samefile(source):
        raise ImageError(f"{target}: expected a folder other than the input's, where results would replace inputs")
    _check_folder(target)
    # a.bmp and a.png must not both become a.png, nor A.png and a.png one file on a disk that ignores case.
    names = target_names([path.name for path in sources], [Saver(key="upscale")])
    return [(path, target / names[path.name][0]) for path in sources]


def _writable_name(source: Path) -> str:
    return source.name if source.suffix.lower() in OUTPUT_SUFFIXES else f"{source.stem}.png"


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not there, nor its parent to make it in, or that cannot be written."""
    existing = folder if folder.exists() else folder.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise DiskError(f"{folder}: expected a folder that can be written, got none; make it or choose another one")


def check_job(source: Path, target: Path, scale: float) -> Picture:
    """Read an input, unless its result would be too large for the rules or for the disk.

    Args:
        source: picture to read.
        target: file its result will be written to.
        scale: enlargement.

    Raises:
        ImageError: the input is not a usable picture.
        DiskError: the disk has no room for the result.
    """
    picture = load_image(source)
    check_room(picture, source, target, scale)
    return picture


def make_folder(folder: Path) -> None:
    """Make the folder of the results, once: if it vanishes later, its drive did, and it must not be made elsewhere.

    Raises:
        DiskError: it cannot be made.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: could not make the folder ({error.strerror}); choose another one") from error


def is_lasting_trouble(error: EAMError, source: Path, target: Path) -> bool:
    """Tell whether what befell one picture befalls all that follow: a full or lost disk.

    Args:
        error: why the picture was not restored.
        source: folder of the pictures.
        target: folder of the results.
    """
    if isinstance(error, DiskError):
        return is_lasting(error.__cause__, target)
    return isinstance(error, ImageError) and is_gone(source)


def check_room(picture: Picture, source: Path, target: Path | None, scale: float) -> None:
    """Refuse a picture whose result would be too large for the rules or for the disk.

    Args:
        picture: what was read.
        source: its file, for messages.
        target: file its result will be written to; None where free space is no question, as in a store.
        scale: enlargement.

    Raises:
        ImageError: the result would be too large.
        DiskError: the disk has no room for it.
    """
    height, width = picture.rgb.shape[-2:]
    check_size(height, width, scale, name=str(source))
    if target is None:
        return
    # Uncompressed size: what a picture of noise can come to.
    channels = 3 if picture.alpha is None else 4
    needed = round(height * scale) * round(width * scale) * channels
    try:
        folder = target.parent if target.parent.exists() else target.parent.parent
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DiskError(
            f"{target}: expected a folder on a disk that answers ({error.strerror}); check it or choose another one"
        ) from error
    if free < needed:
        raise DiskError(
            f"{target}: expected {_megabytes(needed)} of free disk for the result, got {_megabytes(free)}; "
            "free some space or choose another folder"
        )


def restore_job(
    restorer: "Restorer", picture: Picture, name: str, config: "RestoreConfig", on_progress: "Progress | None" = None
) -> Picture:
    """Restore one picture.

    Args:
        restorer: the model.
        picture: input.
        name: what to call it in messages.
        config: settings.
        on_progress: see `denoiser.Progress`.

    Raises:
        EAMError: memory ran out, or the picture cannot be restored.
    """
    import torch

    try:
        return restorer.restore_picture(picture, config, on_progress)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise EAMError(
            f"{name}: expected more memory for tiles of {config.tile} pixels; lower --tile or --tile-batch"
        ) from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
