"""Pictures as training wants them: decoded to 8-bit RGB, upright, without transparency."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from eam_core.errors import ImageError
from eam_core.images import check_size
from eam_core.picture_files import FORMATS, check_cost, upright
from train.data.samples import Blob

_HEADER_BYTES = 2**18


def decode(data: bytes, name: str, background: int | None = None) -> np.ndarray:
    """Decode a picture of any depth and colour mode.

    Args:
        data: the encoded picture.
        name: what to call it in a message.
        background: grey that shows through transparent parts, in [0,255]; None shows the colours stored under them.

    Returns:
        uint8 [H,W,3]; upright as EXIF says, 16 bits cut to 8.

    Raises:
        ImageError: not a picture, damaged, too small or too large.
    """
    file = io.BytesIO(data)
    with _opened(file, name) as image:
        check_size(image.height, image.width, name=name)
        check_cost(image, file, name)
        image.load()
        turned = upright(image)
        if turned.mode.startswith("I"):
            grey = (np.asarray(turned).astype(np.float32) / 257).clip(0, 255).round().astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if "transparency" in turned.info:
            turned = turned.convert("RGBA")
        if background is not None and turned.mode in ("RGBA", "LA", "PA"):
            paper = Image.new("RGBA", turned.size, (background, background, background, 255))
            turned = Image.alpha_composite(paper, turned.convert("RGBA"))
        return np.array(turned.convert("RGB"))


def measure(blob: Blob, name: str) -> tuple[int, int]:
    """Read height and width from a picture's header; which is which is not settled, as EXIF may turn it.

    Raises:
        ImageError: not a picture.
    """
    try:
        return _measure(blob.read(_HEADER_BYTES), name)
    except ImageError:  # some formats want the whole file, some files have long headers
        return _measure(blob.read(), name)
    except OSError as error:
        raise ImageError(f"{name}: expected a readable file, got {error}; check its permissions.") from error


def _measure(data: bytes, name: str) -> tuple[int, int]:
    with _opened(io.BytesIO(data), name) as image:
        return image.height, image.width


@contextmanager
def _opened(file: io.BytesIO, name: str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about odd metadata and sizes that check_size judges
            with Image.open(file, formats=FORMATS) as image:
                yield image
    except ImageError:
        raise
    # Decoders of damaged files raise whatever they trip over: OSError, SyntaxError, struct.error, IndexError...
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ImageError(f"{name}: expected a whole picture, got a damaged or other file ({reason}).") from error
