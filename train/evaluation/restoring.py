"""Restore a folder of inputs with a model of any control family, so that models can be scored side by side."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eam_core.errors import EAMError, ImageError
from eam_core.images import list_images, load_image, save_image
from eam_core.restore_config import RestoreConfig
from train.evaluation.models import Model, content_id
from train.evaluation.pictures import check_names
from train.evaluation.words import Words, captions_of, encode_at_once, words_for
from train.run_folder import write_text

SETTINGS = "restored.json"
NO_WORDS = Words()


def restore_folder(
    model: Model,
    lr: Path,
    out: Path,
    *,
    scale: float,
    seed: int = 0,
    words: Words = NO_WORDS,
    device: str = "cpu",
) -> Path:
    """Restore the pictures of a folder that are not restored yet, with the settings that the model's family likes.

    A picture is restored again when it or its caption has changed.

    Args:
        model: its files.
        lr: folder of inputs.
        out: folder; results go to out/NAME as PNG.
        scale: enlargement.
        seed: of every picture.
        words: what a model with text is told; left out, with one sentence, where text does not reach it.
        device: where it runs, as torch names it.

    Returns:
        The folder of results.

    Raises:
        EAMError: a picture, a caption or a model cannot be read, or a result not be written.
    """
    sources = list_images(lr)
    if not sources:
        raise ImageError(f"{lr}: expected a folder with pictures in it, found none; check --lr")
    check_names(sources)
    words = words_for(model, words)
    prompts = captions_of(sources, words)
    target = out / model.name
    settings = {"files": model.identity(), "scale": scale, "seed": seed, "captions": words.captions}
    note = _Note(target, settings | {"negative_prompt": words.negative_prompt})
    wanted = {path: {"input": content_id(path), "prompt": prompts[path.stem]} for path in sources}
    waiting = [path for path in sources if not note.has(path.stem, wanted[path])]
    if not waiting:
        return target
    restorer = model.load(device)
    encode_at_once(restorer, [words.negative_prompt, *(prompts[path.stem] for path in waiting)])
    for path in tqdm(waiting, desc=model.name, unit="picture"):
        try:
            config = RestoreConfig.from_spec(
                restorer.spec,
                scale=scale,
                seed=seed,
                prompt=prompts[path.stem],
                negative_prompt=words.negative_prompt,
            )
            result = restorer.restore_picture(load_image(path), config, lambda done, total: None)
        except ValueError as error:
            raise EAMError(f"{model.name}, {path.name}: {error}") from error
        save_image(result, target / f"{path.stem}.png")
        note.add(path.stem, wanted[path])
    return target


class _Note:
    """What a folder of results was made with, written beside them."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        """Claim a folder, or refuse one that was begun with something else.

        Raises:
            EAMError: its results were made with other files or settings.
        """
        self.folder, self.path = folder, folder / SETTINGS
        self.pictures: dict[str, Any] = {}
        self.settings = dict(settings)
        if self.path.exists():
            self._read()
        self._write()

    def has(self, picture: str, made_from: Mapping[str, str]) -> bool:
        """Say whether there is a result made from this."""
        return self.pictures.get(picture) == made_from and (self.folder / f"{picture}.png").exists()

    def add(self, picture: str, made_from: Mapping[str, str]) -> None:
        """Note a result that has been written."""
        self.pictures[picture] = dict(made_from)
        self._write()

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.pictures = dict(found.pop("pictures", {}))
        except (ValueError, AttributeError, TypeError) as error:
            raise EAMError(
                f"{self.path}: expected a note on results, but it is damaged ({error}); delete it"
            ) from error
        changed = [name for name, value in self.settings.items() if found.get(name) != value]
        if changed:
            raise EAMError(
                f"{self.folder}: expected results of the same files and settings, got others ({', '.join(changed)}); "
                "use another name or --out"
            )

    def _write(self) -> None:
        write_text(self.path, json.dumps({**self.settings, "pictures": self.pictures}, indent=1) + "\n")
