"""Text embeddings on disk: each caption is encoded once, and training reads it without any text encoder.

FOLDER/encoders.json            which encoders wrote the folder
FOLDER/SHA256.safetensors       context and pooled vector of the caption with that SHA-256, in bfloat16
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from eam_core.denoiser import Text
from eam_core.errors import CheckpointError, DiskError, EAMError
from eam_core.weight_files import read_weights, save_weights

COMMAND = "python -m train.cache_text"


class TextCache:
    """Read the embeddings of captions from a folder."""

    def __init__(self, folder: str | Path):
        """Open a folder that `train.cache_text` has written.

        Raises:
            EAMError: it is none.
        """
        self.folder = Path(folder)
        if not (self.folder / "encoders.json").is_file():
            raise EAMError(f"expected a text cache in {folder}, found none; make it with {COMMAND} --cache {folder}")

    @classmethod
    def create(cls, folder: str | Path, encoders: str) -> "TextCache":
        """Make a folder, or open one that the same encoders have begun.

        Args:
            folder: made if missing.
            encoders: `fingerprint` of the text encoders.

        Raises:
            EAMError: other encoders wrote the folder.
            DiskError: the folder cannot be written.
        """
        note = Path(folder) / "encoders.json"
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            if not note.exists():
                part = note.with_suffix(".part")
                part.write_text(json.dumps({"encoders": encoders}) + "\n", encoding="utf-8")
                part.replace(note)
            for leftover in note.parent.glob(".*.part"):  # of a killed run
                leftover.unlink()
            known = note.read_text(encoding="utf-8")
        except OSError as error:
            raise DiskError(f"could not write {note} ({error}); choose another --cache folder") from error
        try:
            same = json.loads(known)["encoders"] == encoders
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise EAMError(
                f"expected a text cache of the same encoders in {folder}, got one of others; use a new --cache"
            )
        return cls(folder)

    def __contains__(self, caption: str) -> bool:
        """Whether the caption's embedding is there."""
        return self._path(caption).exists()

    def write(self, caption: str, text: Text) -> None:
        """Store one caption's embedding.

        Raises:
            DiskError: the disk is full; nothing is left under the caption's name.
        """
        tensors = {"context": text.context[0], "pooled": text.pooled[0]}
        save_weights(self._path(caption), tensors, dtype=torch.bfloat16, caption=caption)

    def read(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Read the embeddings of a batch.

        Returns:
            context [B, T, C] and pooled [B, P], float32.

        Raises:
            EAMError: a caption has not been encoded.
            CheckpointError: a file is damaged.
        """
        read = [self._read(caption) for caption in captions]
        context, pooled = (torch.stack([each[name] for each in read]).float() for name in ("context", "pooled"))
        return context, pooled

    def null(self) -> tuple[Tensor, Tensor]:
        """Read the embedding of the empty prompt, as `read` does: [1, T, C] and [1, P]."""
        return self.read([""])

    def _read(self, caption: str) -> dict[str, Tensor]:
        path = self._path(caption)
        if not path.exists():
            shown = caption if len(caption) <= 60 else caption[:57] + "..."
            raise EAMError(
                f"expected the embedding of the caption {shown!r} in {self.folder}, found none; "
                f"run {COMMAND} with the same --data and --captions as the training"
            )
        read = read_weights(path)
        whole = read.keys() >= {"context", "pooled"} and (read["context"].ndim, read["pooled"].ndim) == (2, 1)
        if not whole:
            raise CheckpointError(
                f"expected the embedding of a caption in {path}, got {sorted(read)[:3]}; delete it and run {COMMAND}"
            )
        return read

    def _path(self, caption: str) -> Path:
        return self.folder / f"{hashlib.sha256(caption.encode()).hexdigest()}.safetensors"


def fingerprint(folder: str | Path) -> str:
    """Return a hash of the config files of an SD3 pipeline's text encoders and tokenizers."""
    digest = hashlib.sha256()
    for part in ("text_encoder", "tokenizer"):
        for suffix in ("", "_2", "_3"):
            for file in sorted((Path(folder) / f"{part}{suffix}").glob("*config.json")):
                digest.update(f"{file.parent.name}/{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()
