"""Pictures: read them from disk, check their size, resize them, and write them."""

import io
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import ImageError, printable
from .picture_files import (
    MAX_PIXELS,
    check_cost,
    is_of_drive,
    open_picture,
    quiet,
    sound_profile,
    too_many_pixels,
    upright,
)
from .whole_file import write_whole

# One token of the transformer: two latents of 8 pixels.
MIN_EDGE = 16
MAX_EDGE = 16_384
# Four times the input's: beyond, one float32 copy of the result alone passes 12 GB.
MAX_OUTPUT_EDGE = 65_536
MAX_OUTPUT_PIXELS = 2**30
MIN_SCALE, MAX_SCALE = 1, 8

INPUT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
_ALPHA_MODES = ("LA", "PA", "RGBA")


@dataclass(frozen=True, kw_only=True)
class _Encoding:
    format: str
    max_edge: int
    options: dict[str, Any]


_JPEG = _Encoding(format="JPEG", max_edge=65_500, options={"quality": 95, "subsampling": 0})
_ENCODINGS = {
    ".png": _Encoding(format="PNG", max_edge=MAX_OUTPUT_EDGE, options={}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _Encoding(format="WEBP", max_edge=16_383, options={"quality": 95}),
}
OUTPUT_SUFFIXES = tuple(_ENCODINGS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """Hold one decoded picture: colour, transparency and the colour profile it was written in.

    Attributes:
        rgb: [1,3,H,W], float32, [0,1].
        alpha: [1,1,H,W], float32, [0,1], 1 is opaque; None without transparency.
        icc_profile: RGB colour profile, passed on unread; None without one.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    icc_profile: bytes | None = None

    def __post_init__(self) -> None:
        if self.rgb.ndim != 4 or self.rgb.shape[:2] != (1, 3):
            raise ValueError(f"expected rgb of shape [1,3,H,W], got {tuple(self.rgb.shape)}; pass one BCHW image")
        expected = (1, 1, *self.rgb.shape[2:])
        if self.alpha is not None and self.alpha.shape != expected:
            raise ValueError(f"expected alpha of shape {expected}, got {tuple(self.alpha.shape)}; resize it to rgb")


def check_size(height: int, width: int, scale: float = 1.0, name: str = "the picture") -> None:
    """Refuse a picture that is too small or too large, or would become too large.

    Args:
        height: input height in pixels.
        width: input width in pixels.
        scale: enlargement, see `check_scale`.
        name: what to call the picture in the message.

    Raises:
        ImageError: an edge or the number of pixels, of the input or of the result, is out of bounds.
    """
    if min(height, width) < MIN_EDGE or max(height, width) > MAX_EDGE:
        todo = "use a larger picture" if min(height, width) < MIN_EDGE else "crop or shrink it first"
        got = f"got {width} x {height} (width x height)"
        raise ImageError(f"{name}: expected edges of {MIN_EDGE} to {MAX_EDGE} pixels, {got}; {todo}.")
    if height * width > MAX_PIXELS:
        raise ImageError(too_many_pixels(name, f"{width} x {height}"))
    out_height, out_width = round(height * scale), round(width * scale)
    if max(out_height, out_width) > MAX_OUTPUT_EDGE or out_height * out_width > MAX_OUTPUT_PIXELS:
        raise ImageError(
            f"{name}: expected a result of at most {MAX_OUTPUT_EDGE} pixels per edge and {MAX_OUTPUT_PIXELS // 10**6} "
            f"million in all, got {out_width} x {out_height} at scale {scale:g}; lower the scale or crop the picture."
        )


def check_scale(scale: float) -> None:
    """Refuse an enlargement outside [1, 8].

    Args:
        scale: output edge over input edge.

    Raises:
        ImageError: scale is out of bounds or not a number.
    """
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise ImageError(
            f"scale: expected a number from {MIN_SCALE} to {MAX_SCALE}, got {scale:g}; 4 is what the model is made for."
        )


def check_output_path(path: str | Path) -> None:
    """Refuse a name that `save_image` cannot write, before any work is spent on the picture.

    Args:
        path: file to be written.

    Raises:
        ImageError: the suffix names no known format.
    """
    if Path(path).suffix.lower() not in _ENCODINGS:
        got = Path(path).suffix or "no suffix"
        raise ImageError(f"{path}: expected a name ending in {', '.join(OUTPUT_SUFFIXES)}, got {got}; rename it.")


def load_image(path: str | Path, data: bytes | None = None) -> Picture:
    """Read a picture: any depth and colour mode that Pillow decodes, upright as EXIF says, an animation's first frame.

    Damaged EXIF data and colour profiles are passed over.

    Args:
        path: PNG, JPEG, WebP, TIFF, BMP or GIF file; its content decides, not its name.
        data: what the file holds, where it was read already; path is its name then.

    Returns:
        Picture with transparency apart from colour. 16-bit grey keeps its depth; Pillow cuts 16-bit colour to 8.

    Raises:
        ImageError: the file is missing, unreadable, not a picture, damaged, too small or too large.
    """
    try:
        return _read_image(path, data)
    except OSError as error:
        raise ImageError(f"{path}: expected a readable file, got {_reason(error)}; check its drive.") from error


def _read_image(path: str | Path, data: bytes | None) -> Picture:
    with open_picture(Path(path), data) as (image, file), quiet():
        check_size(image.height, image.width, name=str(path))
        check_cost(image, file, str(path))
        try:
            image.load()
        # Decoders of damaged files raise whatever they trip over: OSError, SyntaxError, struct.error, IndexError...
        except Exception as error:
            if is_of_drive(error):
                raise
            raise ImageError(
                f"{path}: expected a whole picture, got a truncated or damaged file ({error}); copy or export it again."
            ) from error
        rgb, alpha = _to_tensors(upright(image), str(path))
        return Picture(rgb=rgb, alpha=alpha, icc_profile=sound_profile(image.info.get("icc_profile")))


def save_image(picture: Picture | Tensor, path: str | Path, options: dict[str, Any] | None = None) -> None:
    """Write a picture as 8-bit PNG, JPEG or WebP, chosen by suffix; the file appears under its name only when whole.

    JPEG has no transparency: there the picture is laid on white, with a warning.

    Args:
        picture: a Picture, or its colours alone as [1,3,H,W]; clamped to [0,1].
        path: file to write; an older one of that name is replaced.
        options: of Pillow's encoder, such as quality, pnginfo or exif; they go before the usual ones.

    Raises:
        ImageError: the suffix is unknown, the format cannot hold the size, or the values are not finite.
        DiskError: the file could not be written; nothing of it is left.
    """
    write_whole(Path(path), encode_image(picture, path, options).getbuffer())


def encode_image(picture: Picture | Tensor, path: str | Path, options: dict[str, Any] | None = None) -> io.BytesIO:
    """Return what `save_image` writes to a file of that name.

    Raises:
        ImageError: as `save_image`.
    """
    check_output_path(path)
    path = Path(path)
    if isinstance(picture, Tensor):
        picture = Picture(rgb=picture)
    encoding = _ENCODINGS[path.suffix.lower()]
    height, width = picture.rgb.shape[2:]
    if max(height, width) > encoding.max_edge:
        got = f"got {width} x {height} (width x height); save it as .png"
        raise ImageError(f"{path}: expected edges of at most {encoding.max_edge} pixels for {encoding.format}, {got}.")
    rgb, alpha = picture.rgb, picture.alpha
    if not rgb.isfinite().all():
        raise ImageError(f"{path}: expected finite colours, got NaN or infinity; run the model at a higher precision.")
    if alpha is not None and encoding is _JPEG:
        warnings.warn(
            f"{printable(path)}: JPEG holds no transparency, so it is filled with white; use .png to keep it.",
            stacklevel=3,
        )
        rgb, alpha = rgb.clamp(0, 1) * alpha + (1 - alpha), None
    channels = rgb if alpha is None else torch.cat((rgb, alpha), dim=1)
    pixels = channels[0].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    data = io.BytesIO()
    profile = {"icc_profile": picture.icc_profile} if picture.icc_profile else {}
    try:
        Image.fromarray(pixels).save(data, format=encoding.format, **encoding.options | profile | (options or {}))
    except (ValueError, OSError, OverflowError, struct.error) as error:  # such as metadata that it has no room for
        raise ImageError(
            f"{path}: expected a picture that {encoding.format} can hold, got one it cannot ({error}); save it as .png."
        ) from error
    return data


def resize(image: Tensor, size: tuple[int, int], mode: Literal["bicubic", "bilinear"] = "bicubic") -> Tensor:
    """Resize with an antialiased kernel, as Pillow's filter of the same name does.

    Args:
        image: [B,C,H,W], [0,1].
        size: height and width wanted, in pixels.
        mode: kernel; bicubic (Keys, a = -0.5) for colour, bilinear where overshoot is unwanted.

    Returns:
        [B,C,*size] in [0,1].
    """
    return F.interpolate(image, size=size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def list_images(folder: str | Path) -> list[Path]:
    """List a folder's pictures by suffix in natural order: 2.png before 10.png.

    Args:
        folder: folder to look into, not below.

    Returns:
        Paths of the files with a known suffix, hidden files left out.

    Raises:
        ImageError: the folder is missing or cannot be read.
    """
    try:
        paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in INPUT_SUFFIXES]
    except OSError as error:
        raise ImageError(f"{folder}: expected a folder of pictures ({_reason(error)}); check the path.") from error
    names = [path.name for path in paths if not path.name.startswith(".") and path.is_file()]
    return [Path(folder, name) for name in sorted(names, key=natural_key)]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return what to sort names by, so that 2.png comes before 10.png."""
    # Split at digits, text and numbers alternate, so only like is compared with like.
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _to_tensors(image: Image.Image, name: str) -> tuple[Tensor, Tensor | None]:
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        # Older versions of Pillow give 16-bit PNGs mode I; a true 32-bit range shows in its values.
        grey = torch.from_numpy(values if image.mode == "F" else values / 65_535)
        if not (grey.min() >= 0 and grey.max() <= 1):
            got = "got a wider range; save it as 16-bit PNG"
            raise ImageError(f"{name}: expected 8 or 16 bits per channel, or floats in [0, 1], {got}.")
        return grey.expand(1, 3, -1, -1).contiguous(), None
    has_alpha = image.mode in _ALPHA_MODES or "transparency" in image.info
    try:
        pixels = np.array(image.convert("RGBA" if has_alpha else "RGB"))
    except ValueError as error:
        raise ImageError(f"{name}: expected grey, RGB or CMYK, got {image.mode}; save it as RGB.") from error
    channels = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(255).contiguous()
    return channels[:, :3], channels[:, 3:] if has_alpha else None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
