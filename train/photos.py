"""Random crops of a set of photographs, kept decoded in memory."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eam_core.errors import ImageError
from eam_core.images import resize

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class PhotoCrops:
    """Draw square crops at native or half size, flipped and turned, from photos with much detail more often."""

    def __init__(self, sources: list[Path], *, held_out: int = 0, split: str = "train"):
        """Decode all photos of the folders and tar files in `sources`.

        Args:
            sources: folders or .tar files of pictures.
            held_out: how many photos, evenly spread over the set, belong to the "held_out" split.
            split: "train" or "held_out".

        Raises:
            ImageError: no picture was found.
        """
        files = [item for source in sources for item in _read_source(Path(source))]
        if not files:
            raise ImageError(f"expected folders or tars with pictures, found none in {[str(s) for s in sources]}")
        held = {round(i * len(files) / held_out) for i in range(held_out)} if held_out else set()
        chosen = [data for i, data in enumerate(files) if (i in held) == (split == "held_out")]
        if not chosen:
            raise ImageError(f"expected at least one photo in the {split!r} split, got none; set held_out above 0")
        self.photos = [_decode(data) for data in tqdm(chosen, desc=f"decoding {split} photos", leave=False)]
        self.weights = torch.tensor([_detail(photo) for photo in self.photos]).clamp(4, 30)

    def __len__(self) -> int:
        return len(self.photos)

    def sample(self, batch_size: int, size: int, generator: torch.Generator) -> Tensor:
        """Draw crops [B, 3, size, size], float32 in [0, 1]."""
        chosen = torch.multinomial(self.weights, batch_size, replacement=True, generator=generator)
        return torch.stack([self._crop(self.photos[int(i)], size, generator) for i in chosen])

    def _crop(self, photo: Tensor, size: int, generator: torch.Generator) -> Tensor:
        def draw(stop: int) -> int:
            return int(torch.randint(stop, (), generator=generator))

        height, width = photo.shape[-2:]
        if min(height, width) < size:
            raise ImageError(f"expected photos of at least {size} x {size} px, got {width} x {height}; cut larger ones")
        factor = 1 + (draw(3) == 0 and min(height, width) >= 2 * size)  # a third at half size, where it fits
        side = size * factor
        top, left = draw(height - side + 1), draw(width - side + 1)
        crop = photo[:, top : top + side, left : left + side].float() / 255
        if factor > 1:
            crop = resize(crop[None], (size, size))[0]
        if draw(2):
            crop = crop.flip(-1)
        return crop.rot90(draw(4), (-2, -1))


def _read_source(source: Path) -> Iterator[bytes]:
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES):
            yield path.read_bytes()
    elif source.suffix == ".tar" and source.exists():
        with tarfile.open(source) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.lower().endswith(SUFFIXES) else None
                if file:
                    yield file.read()
    else:
        raise ImageError(f"expected a folder or .tar of pictures, got {source}; prepare one with train.prepare_photos")


def _decode(data: bytes) -> Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1).contiguous()


def _detail(photo: Tensor) -> float:
    """Mean absolute Laplacian of the grey picture, in grey levels."""
    grey = photo.float().mean(0)
    centre = grey[1:-1, 1:-1]
    laplacian = 4 * centre - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return laplacian.abs().mean().item()
