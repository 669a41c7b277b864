"""A model as it is named on the command line: its files, whose settings it takes, and whether words reach it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eam_core.companions import EMBEDDINGS, ENCODER, control_file
from eam_core.loading import spec_of_files
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED, Spec
from eam_core.weight_sets import weight_set

EMBEDDED_NAME = "embedded"
SYNTAX = "NAME=CONTROL,BASE,AUTOENCODER[,TEXT_ENCODERS]"
HASHED_BYTES = 2**26  # larger files are known by size and time: to read all of SD3 again would take minutes
_TEXT_PARTS = tuple(f"{part}{suffix}" for part in ("text_encoder", "tokenizer") for suffix in ("", "_2", "_3"))


@dataclass(frozen=True, kw_only=True)
class Model:
    """Name the files of one model.

    Attributes:
        name: as the tables print it.
        control: file or folder of control weights: EAM's, a ControlNet's, DiT4SR's, TSD-SR's.
        base, autoencoder: what the control was trained for.
        text_encoders: SD3 pipeline folder; None runs without text.
    """

    name: str
    control: Path
    base: Path
    autoencoder: Path
    text_encoders: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "Model":
        """Read NAME=CONTROL,BASE,AUTOENCODER[,TEXT_ENCODERS], or NAME=embedded.

        Raises:
            ValueError: it is something else.
        """
        name, equals, files = text.partition("=")
        if name and _is_name(name) and files == EMBEDDED_NAME:
            assert EMBEDDED.control and EMBEDDED.base and EMBEDDED.autoencoder
            return cls(name=name, control=EMBEDDED.control, base=EMBEDDED.base, autoencoder=EMBEDDED.autoencoder)
        paths = [Path(part) for part in files.split(",") if part]
        if not (name and equals and 3 <= len(paths) <= 4) or not _is_name(name):
            raise ValueError(f"--restore: expected {SYNTAX} or NAME={EMBEDDED_NAME}, got {text!r}")
        return cls(name=name, control=paths[0], base=paths[1], autoencoder=paths[2], text_encoders=(*paths, None)[3])

    @classmethod
    def parse_all(cls, texts: Iterable[str]) -> list["Model"]:
        """Read several, each with a name of its own; raises ValueError as `parse` does."""
        models = [cls.parse(text) for text in texts]
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"--restore: expected models of different names, got {name!r} twice; rename one")
        return models

    @cached_property
    def spec(self) -> Spec:
        """Whose defaults it takes; raises CheckpointError where its files are missing or something else."""
        return spec_of_files(self.base, self.control)

    @property
    def deaf_because(self) -> str:
        """Why no caption reaches it; "" where captions do."""
        if self.spec.fixed_prompt:
            return f"{self.spec.name} was trained with one text for all"
        return "" if self.text_encoders else "it has no text encoders; name their folder as the fourth part"

    def identity(self) -> dict[str, dict[str, str]]:
        """Return what tells this model from another one: each part's files by name, with their contents' identity.

        Raises:
            CheckpointError: a file is missing.
        """
        control, vae, text = control_file(self.control), self.autoencoder / "vae", self.text_encoders
        parts = {
            "control": {file.name: file for file in weight_set(control)},
            "base": {file.name: file for file in weight_set(self.base)},
            "autoencoder": _below(vae if vae.is_dir() else self.autoencoder),
            "text_encoders": {},
        }
        if self.spec.fixed_prompt:  # what a control brings besides its weights lies beside it
            parts["control"] |= {name: control.with_name(name) for name in (ENCODER, EMBEDDINGS)}
        for part in _TEXT_PARTS if text else ():
            parts["text_encoders"] |= {f"{part}/{name}": file for name, file in _below(text / part).items()}
        return {
            part: {name: content_id(file) for name, file in files.items() if file.is_file()}
            for part, files in parts.items()
        }

    def load(self, device: str) -> Restorer:
        """Load it; raises as `Restorer.from_files` does."""
        return Restorer.from_files(
            base=self.base,
            control=self.control,
            autoencoder=self.autoencoder,
            text_encoders=self.text_encoders,
            device=device,
        )


def content_id(path: Path) -> str:
    """Return what changes with a file: a hash of its contents, or size and time of a large one."""
    status = path.stat()
    if status.st_size > HASHED_BYTES:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _below(path: Path) -> dict[str, Path]:
    """List a folder's files at any depth by their names below it, hidden ones left out; or a file itself."""
    if not path.is_dir():
        return {path.name: path}
    found = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    return {name: file for name, file in found.items() if not any(part.startswith(".") for part in name.split("/"))}


def _is_name(text: str) -> bool:
    return bool(text) and text not in (".", "..") and Path(text).name == text
