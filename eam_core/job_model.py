"""Which model a command or a worker restores with: weight files and a device, as plain text that can be sent on."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import EAMError

if TYPE_CHECKING:
    from .pipeline import Restorer
    from .restore_config import RestoreConfig

_SAMPLE, _NUM_SAMPLES = 2**20, 64


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Weight files and folders, see `Restorer.from_files`.

    Attributes:
        device: "auto" takes CUDA or MPS where there is one.
        control_settings: other values of what the control leaves open, as text.
        compiled: whether to compile the model, see `Restorer.compile`.
    """

    base: str
    control: str
    autoencoder: str
    text_encoders: str | None = None
    image_encoder: str | None = None
    device: str = "auto"
    control_settings: Mapping[str, str] = field(default_factory=dict)
    compiled: bool = False

    def absolute(self) -> "ModelChoice":
        """Return the same with paths that hold whatever folder a worker runs in."""
        names = ("base", "control", "autoencoder", "text_encoders", "image_encoder")
        return replace(self, **{name: os.path.abspath(path) for name in names if (path := getattr(self, name))})

    def load(self, config: "RestoreConfig") -> "tuple[Restorer, list[str]]":
        """Load the model and check that it serves the settings.

        Returns:
            The model, and what its control has to say to the user.

        Raises:
            EAMError: a file is not what it should be, the device is missing, or a setting does not fit the model.
        """
        from .device import named_device
        from .pipeline import Restorer

        restorer = Restorer.from_files(
            base=self.base,
            control=self.control,
            autoencoder=self.autoencoder,
            text_encoders=self.text_encoders,
            image_encoder=self.image_encoder,
            device=named_device(self.device),
            control_settings=self.control_settings,
        )
        try:
            restorer.check(config)
        except ValueError as error:  # a caller's mistake inside the library is the user's, who chose the value
            raise EAMError(str(error)) from error
        if self.compiled:
            restorer.compile(config)
        return restorer, [f"{Path(self.control).name}: {note}" for note in restorer.model.control.params.notes]

    def fingerprint(self) -> dict[str, object]:
        """Name the model by what its files hold, so that they may lie elsewhere on another day or machine.

        Raises:
            EAMError: a file cannot be read.
        """
        named: dict[str, object] = {"control_settings": dict(self.control_settings)}
        for name in ("base", "control", "autoencoder", "text_encoders", "image_encoder"):
            path = getattr(self, name)
            named[name] = _digest(Path(path)) if path else None
        return named


def _digest(path: Path) -> str:
    """Hash a weight file, or the weights and settings of a folder; of large files evenly spread samples."""
    known = hashlib.sha256()
    try:
        below = [file for file in path.rglob("*") if file.suffix in (".safetensors", ".json") and file.is_file()]
        for file in sorted(below) if path.is_dir() else [path]:
            size = file.stat().st_size
            known.update(f"{file.relative_to(path).as_posix()} {size} ".encode(errors="surrogateescape"))
            with file.open("rb") as opened:
                # They cover all of a file of up to 64 MiB.
                for start in range(0, max(size, 1), max(_SAMPLE, (size - _SAMPLE) // (_NUM_SAMPLES - 1))):
                    opened.seek(start)
                    known.update(opened.read(_SAMPLE))
    except OSError as error:
        raise EAMError(f"{path}: expected weights that can be read ({error.strerror}); check the path") from error
    return known.hexdigest()[:16]
