"""The loss of a JPEG file (baseline, 4:2:0) without the file, for pictures of any sizes at once, on any device.

Source: ITU-T T.81, annex K for the tables; the rounding follows libjpeg: integer colour transform and subsampling,
quality scaling, triangle-shaped enlargement of the colour planes. Colours are whole numbers in float32, where every sum
of libjpeg's 16-bit arithmetic is exact.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# Rows Y, Cb, Cr over R, G, B and an offset, in units of 2^-16.
_TO_YCC = (
    (19595, 38470, 7471, 32768),
    (-11059, -21709, 32768, (128 << 16) + 32767),
    (32768, -27439, -5329, (128 << 16) + 32767),
)
# Rows R, G, B over Cb - 128 and Cr - 128; Y is added.
_FROM_YCC = ((0, 91881), (-22554, -46802), (116130, 0))
# Sums that are exactly halfway round up whatever the order of summation: the margin is above float32's error.
_MARGIN = 1e-3


def quality_tables(quality: float) -> Tensor:
    """Scale the standard quantisation tables as libjpeg does.

    Args:
        quality: 1..100, rounded to a whole number.

    Returns:
        float32 [2,64], whole numbers in 1..255: luma and colour, row by row.

    Raises:
        ValueError: quality outside 1..100.
    """
    whole = round(quality)
    if not 1 <= whole <= 100:
        raise ValueError(f"expected a JPEG quality in 1..100, got {quality}")
    percent = 5000 // whole if whole < 50 else 200 - 2 * whole
    return _standard_tables().mul(percent).add(50).div(100).floor().clamp(1, 255)


@lru_cache(maxsize=1)
def _standard_tables() -> Tensor:
    return torch.tensor([_LUMA_TABLE, _CHROMA_TABLE], dtype=torch.float32).flatten(1)


@lru_cache(maxsize=8)
def _block_transform(device: torch.device) -> Tensor:
    """Matrix [64,64] that takes a block, row by row, to its orthonormal two-dimensional cosine transform."""
    position = torch.arange(8, dtype=torch.float64)
    one_axis = torch.cos((2 * position + 1) * position[:, None] * (math.pi / 16)) / 2
    one_axis[0] /= math.sqrt(2)
    return torch.kron(one_axis, one_axis).float().to(device)


@lru_cache(maxsize=8)
def _on_device(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=device)


@torch.no_grad()
def jpeg_each(images: Sequence[Tensor], qualities: Sequence[float]) -> list[Tensor]:
    """Pass pictures of any sizes through JPEG, each at its own quality.

    Args:
        images: pictures [3,H,W] in [0,1] on one device.
        qualities: one per picture, 1..100, rounded to whole numbers.

    Returns:
        Pictures of the same sizes, 8-bit levels.
    """
    if not images:
        return []
    luma, colour = zip(*(_to_blocks(image) for image in images), strict=True)
    counts = [len(blocks) for blocks in (*luma, *colour)]
    tables = torch.stack([quality_tables(quality) for quality in qualities], dim=1).flatten(0, 1)
    repeats = torch.tensor(counts)
    blocks = torch.cat((*luma, *colour))
    steps = tables.repeat_interleave(repeats, dim=0).to(blocks.device)
    decoded = _code_blocks(blocks, steps).split(counts)
    pairs = zip(images, decoded[: len(images)], decoded[len(images) :], strict=True)
    return [_from_blocks(y, cbcr, image.shape[-2], image.shape[-1]) for image, y, cbcr in pairs]


def jpeg(images: Tensor, quality: float) -> Tensor:
    """Pass a batch through JPEG at one quality.

    Args:
        images: [B,3,H,W] in [0,1].
        quality: 1..100, rounded to a whole number.

    Returns:
        [B,3,H,W], 8-bit levels.

    Raises:
        ValueError: quality outside 1..100.
    """
    return torch.stack(jpeg_each(list(images), [quality] * len(images)))


def _to_blocks(image: Tensor) -> tuple[Tensor, Tensor]:
    """Luma and colour blocks [N,64] of a picture, the colour planes at half size, all around 0."""
    _, height, width = image.shape
    matrix = _on_device(_TO_YCC, image.device)
    pixels = _extend(image.clamp(0, 1).mul(255).round_(), height + height % 2, width + -width % 16)
    planes = torch.addmm(matrix[:, 3:], matrix[:, :3], pixels.flatten(1)).mul_(2**-16).floor_().sub_(128)
    planes = planes.view(pixels.shape)
    rows = planes[1:, 0::2] + planes[1:, 1::2]
    # Even columns round down and odd ones up, so that the planes as a whole keep their brightness.
    bias = torch.tensor([1.0, 2.0], device=image.device).repeat(rows.shape[-1] // 4)
    colour = (rows[..., 0::2] + rows[..., 1::2]).add_(bias).mul_(0.25).floor_()
    tall = height + -height % 16
    # libjpeg repeats the last row of each plane after the colours are halved.
    return _split(_extend(planes[:1], tall, planes.shape[-1])), _split(_extend(colour, tall // 2, colour.shape[-1]))


def _extend(planes: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column of planes [C,h,w] up to a size."""
    return pad(planes[None], (0, width - planes.shape[-1], 0, height - planes.shape[-2]), mode="replicate")[0]


def _split(planes: Tensor) -> Tensor:
    count, height, width = planes.shape
    blocks = planes.reshape(count, height // 8, 8, width // 8, 8)
    return blocks.transpose(2, 3).reshape(-1, 64)


def _join(blocks: Tensor, height: int, width: int) -> Tensor:
    planes = blocks.view(-1, height // 8, width // 8, 8, 8)
    return planes.transpose(2, 3).reshape(-1, height, width)


def _code_blocks(blocks: Tensor, steps: Tensor) -> Tensor:
    """Quantise the cosine transform of blocks [N,64] by steps [N,64] and return to pixels in -128..127."""
    transform = _block_transform(blocks.device)
    # libjpeg keeps three bits behind the point and rounds them before it divides.
    eighths = (blocks @ (8 * transform.T)).add_(0.5 + _MARGIN).floor_()
    whole = eighths.abs().add_(4 * steps).div_(8 * steps).floor_().copysign_(eighths)
    return (whole.mul_(steps) @ transform).add_(0.5 + _MARGIN).floor_().clamp_(-128, 127)


def _enlarge(planes: Tensor, height: int, width: int) -> Tensor:
    """Double colour planes [2,h,w] to [2,height,width]: each new sample takes 3/4 of the nearer old one per axis."""
    padded = pad(planes[None], (1, 1, 1, 1), mode="replicate")[0]
    near, above, below = 3 * padded[:, 1:-1], padded[:, :-2], padded[:, 2:]
    rows = torch.stack((near + above, near + below), dim=2).flatten(1, 2)
    near, left, right = 3 * rows[..., 1:-1], rows[..., :-2], rows[..., 2:]
    both = torch.stack(((near + left).add_(8), (near + right).add_(7)), dim=-1).flatten(2)
    return both.mul_(1 / 16).floor_()[:, :height, :width]


def _from_blocks(luma: Tensor, colour: Tensor, height: int, width: int) -> Tensor:
    """Put decoded blocks together to a picture [3,height,width] in [0,1]."""
    tall, wide = height + -height % 16, width + -width % 16
    y = _join(luma, tall, wide)[:, :height, :width]
    half = _join(colour, tall // 2, wide // 2)[:, : (height + 1) // 2, : (width + 1) // 2]
    cbcr = _enlarge(half, height, width).reshape(2, -1)
    shift = (_on_device(_FROM_YCC, luma.device) @ cbcr).add_(32768).mul_(2**-16).floor_().view(3, height, width)
    return shift.add_(y).add_(128).clamp_(0, 255).div_(255)
