"""Restore a folder of inputs with a model of any control family, so that models can be scored side by side."""

import json
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from eam_core.errors import EAMError, ImageError
from eam_core.images import list_images, load_image, save_image
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED
from eam_core.restore_config import RestoreConfig
from train.run_folder import write_text

EMBEDDED_NAME = "embedded"
SETTINGS = "restored.json"


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
            raise ValueError(
                f"--restore: expected NAME=CONTROL,BASE,AUTOENCODER[,TEXT_ENCODERS] or NAME={EMBEDDED_NAME}, "
                f"got {text!r}"
            )
        return cls(name=name, control=paths[0], base=paths[1], autoencoder=paths[2], text_encoders=(*paths, None)[3])


def restore_folder(model: Model, lr: Path, out: Path, *, scale: float, seed: int = 0, device: str = "cpu") -> Path:
    """Restore the pictures of a folder that are not restored yet, with the settings that the model's family likes.

    Args:
        model: its files.
        lr: folder of inputs.
        out: folder; results go to out/NAME as PNG.
        scale: enlargement.
        seed: of every picture.
        device: where it runs, as torch names it.

    Returns:
        The folder of results.

    Raises:
        EAMError: a picture or a model cannot be read, or a result not be written.
    """
    target = out / model.name
    _claim(target, model, scale, seed)
    sources = list_images(lr)
    if not sources:
        raise ImageError(f"{lr}: expected a folder with pictures in it, found none; check --lr")
    waiting = [path for path in sources if not (target / f"{path.stem}.png").exists()]
    if not waiting:
        return target
    restorer = Restorer.from_files(
        base=model.base,
        control=model.control,
        autoencoder=model.autoencoder,
        text_encoders=model.text_encoders,
        device=device,
    )
    config = RestoreConfig.from_spec(restorer.spec, scale=scale, seed=seed)
    for path in tqdm(waiting, desc=model.name, unit="picture"):
        try:
            result = restorer.restore_picture(load_image(path), config, lambda done, total: None)
        except ValueError as error:
            raise EAMError(f"{model.name}, {path.name}: {error}") from error
        save_image(result, target / f"{path.stem}.png")
    return target


def _is_name(text: str) -> bool:
    return bool(text) and text not in (".", "..") and Path(text).name == text


def _claim(target: Path, model: Model, scale: float, seed: int) -> None:
    """Note what a folder of results is made with, or refuse one that was begun with something else."""
    files = (model.control, model.base, model.autoencoder, model.text_encoders)
    settings = {"files": [file and str(file) for file in files], "scale": scale, "seed": seed}
    note = target / SETTINGS
    if note.exists():
        if json.loads(note.read_text(encoding="utf-8")) != settings:
            raise EAMError(
                f"{target}: expected results of the same files and scale, got others; use another name or --out"
            )
        return
    write_text(note, json.dumps(settings, indent=1) + "\n")
