"""What tells the folder of one vision-language model from another's, without reading all of its weights."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..safetensors_header import MAX_HEADER_BYTES
from .messages import CaptionError

_SETTINGS = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_SAMPLE = 256  # bytes of each tensor
_LONGEST_SETTINGS = 2**28  # bytes; the largest tokenizers have 35 MB


def fingerprint(folder: Path, weights: Sequence[Path], tick: Callable[[], None]) -> str:
    """Hash all settings of a folder (config, tokenizer, processor, chat template), and a sample of each tensor.

    Args:
        folder: of the model.
        weights: its safetensors files.
        tick: called between reads; may raise to stop.

    Raises:
        CaptionError: a file cannot be read.
    """
    known = hashlib.sha256()
    try:
        for file in sorted({file for pattern in _SETTINGS for file in folder.glob(pattern) if file.is_file()}):
            tick()
            size = file.stat().st_size
            if size > _LONGEST_SETTINGS:
                raise CaptionError(
                    f"expected settings of at most {_LONGEST_SETTINGS} bytes, got {size} in {file}; download it again"
                )
            content = file.read_bytes()
            known.update(f"{file.name} {len(content)} ".encode(errors="surrogateescape") + content)
        for file in weights:
            known.update(f"{file.name} {file.stat().st_size} ".encode(errors="surrogateescape"))
            for sample in _samples(file):
                tick()
                known.update(sample)
    except OSError as error:
        raise CaptionError(
            f"expected files that can be read in {folder}, but {error.strerror or error}; check the folder's rights"
        ) from error
    return known.hexdigest()[:16]


def _samples(file: Path) -> Iterator[bytes]:
    """Yield the header of a safetensors file, and a few bytes from the middle of each tensor."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(min(length, MAX_HEADER_BYTES))
        yield header
        for start, end in _tensors(header):
            size = min(_SAMPLE, end - start)
            opened.seek(8 + length + (start + end - size) // 2)
            yield opened.read(size)


def _tensors(header: bytes) -> list[tuple[int, int]]:
    """Return where tensors start and end; none for a damaged header, which reading the weights will name."""
    try:
        fields = json.loads(header)
        offsets = [each["data_offsets"] for name, each in fields.items() if name != "__metadata__"]
        return sorted((int(start), int(end)) for start, end in offsets if 0 <= start <= end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
