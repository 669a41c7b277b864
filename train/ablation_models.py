"""Models that an ablation scores beside its arms, or alone: given as they are, on its pictures, not trained here."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eam_core.errors import DiskError, EAMError
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from train.ablation_scores import SAMPLINGS, Distance, held_out, load_distance, measured, only, sampled, way_name
from train.control_task import ControlConfig
from train.data import Batch
from train.evaluation.models import Model
from train.evaluation.words import Words, encode_at_once, words_for
from train.pairs import degrade_each, encode_pairs
from train.run_folder import write_text

OWN = "own settings"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """A model and how it is scored.

    Attributes:
        model: its files.
        config: the ablation's, of which pictures, degradations and the schedule's shift count here.
        words: what of the captions and the negative prompt reaches it.
        own: the settings of its family.
        folder: where its scores lie; another one for other files or settings.
    """

    model: Model
    config: ControlConfig
    words: Words
    own: RestoreConfig
    folder: Path

    @property
    def ways(self) -> list[str]:
        """The ways that it is sampled in; one that starts from the input itself has only its own."""
        arms = [way_name(*sampling) for sampling in SAMPLINGS] if self.model.spec.start == "noise" else []
        return [OWN, *arms]


def plan_models(models: Sequence[Model], config: ControlConfig, words: Words, run_dir: str) -> list[Given]:
    """Say how models are scored; raises EAMError where their files are missing or something else."""
    plans = []
    for model in models:
        heard = words_for(model, words)
        own = RestoreConfig.from_spec(model.spec, scale=config.pairs.scale, negative_prompt=heard.negative_prompt)
        settings = {
            "files": model.identity(),
            "own": dataclasses.asdict(own),
            "size": config.val_size,
            "samplings": SAMPLINGS,
            "shift": config.objective.shift,
        }
        text = json.dumps(settings, indent=1, sort_keys=True)
        folder = Path(run_dir) / f"restored-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
        write_text(folder / "model.json", text + "\n")
        plans.append(Given(model=model, config=config, words=heard, own=own, folder=folder))
    return plans


@torch.no_grad()
def score_model(given: Given, count: int, device: str) -> dict[str, list[float]]:
    """Score a model on the pictures that are not scored yet.

    Args:
        given: the model.
        count: held-out pictures.
        device: where it runs, as torch names it.

    Returns:
        Scores by "metric, way": all pictures of the first degradation, then of the next, as `ablation_scores.score`.

    Raises:
        EAMError: the model or a caption cannot be read, or the model cannot restore pictures of this size.
    """
    config, words = given.config, given.words
    data = dataclasses.replace(config.data, captions=words.captions, caption_dir=words.caption_dir)
    batch = held_out(data, count, config.val_size)
    distance, store = load_distance(), _Store(given.folder / "scores.jsonl")
    keys = [(preset, _picture_id(batch, index)) for preset in config.pairs.presets for index in range(len(batch.hr))]
    columns = [f"{metric}, {way}" for way in given.ways for metric in ("PSNR", "ST-LPIPS")[: 2 if distance else 1]]
    missing = [number for number, key in enumerate(keys) if not store.scores.get(key, {}).keys() >= set(columns)]
    if missing:
        restorer = given.model.load(device)
        encode_at_once(restorer, [words.negative_prompt, *batch.captions])
        lr = torch.cat([degrade_each(batch.hr / 255, batch.seeds, only(config.pairs, p)) for p in config.pairs.presets])
        for number in tqdm(missing, desc=given.model.name, unit="picture"):
            index = number % len(batch.hr)
            try:
                scores = _score_picture(given, restorer, batch, index, lr[number : number + 1], distance)
            except ValueError as error:
                raise EAMError(f"{given.model.name}: {error}") from error
            store.add(keys[number], scores)
    return {column: [store.scores[key][column] for key in keys] for column in columns}


def _score_picture(
    given: Given, restorer: Restorer, batch: Batch, index: int, lr: Tensor, distance: Distance | None
) -> dict[str, float]:
    hr, prompt = batch.hr[index : index + 1] / 255, batch.captions[index]
    ways = {OWN: restorer.restore(lr, dataclasses.replace(given.own, prompt=prompt), lambda done, total: None)}
    if len(given.ways) > 1:
        ways |= _as_the_arms(given, restorer, hr, lr, batch.seeds[index : index + 1], prompt)
    scores = {way: measured(restored.cpu(), hr, distance) for way, restored in ways.items()}
    return {f"{metric}, {way}": found[0] for way in scores for metric, found in scores[way].items()}


def _as_the_arms(
    given: Given, restorer: Restorer, hr: Tensor, lr: Tensor, seeds: Tensor, prompt: str
) -> dict[str, Tensor]:
    """Sample a picture as `ablation_scores.score` does an arm's: no guidance, no tiles, no colours of the input."""
    dtype = next(restorer.model.parameters()).dtype
    context, pooled = (part.to(restorer.device, dtype) for part in restorer.text.encode([prompt])[0])
    pairs = encode_pairs(hr.to(restorer.device), lr.to(restorer.device), restorer.autoencoder)

    def model(x: Tensor, time: Tensor, context: Tensor, pooled: Tensor, lr_latents: Tensor, **settings: Any) -> Tensor:
        return restorer.model(x.to(dtype), time, context, pooled, lr_latents.to(dtype), **settings)

    shift = given.config.objective.shift
    return dict(sampled(model, restorer.autoencoder, pairs, seeds, (context, pooled), shift=shift))


def _picture_id(batch: Batch, index: int) -> str:
    """Return what tells a picture, its seed and its caption from others."""
    digest = hashlib.blake2b(batch.hr[index].numpy().tobytes(), digest_size=12)
    digest.update(f"{int(batch.seeds[index])} {batch.captions[index]}".encode())
    return digest.hexdigest()


class _Store:
    """Scores by degradation and picture, one line of JSON each, written as soon as they are known."""

    def __init__(self, path: Path):
        self.path = path
        self.scores: dict[tuple[str, str], dict[str, float]] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self.scores[entry["preset"], entry["picture"]] = dict(entry["scores"])
            except (ValueError, KeyError, TypeError):
                continue  # half a line of a killed process
        if text and not text.endswith("\n"):
            self._append("\n")

    def add(self, key: tuple[str, str], scores: dict[str, float]) -> None:
        """Keep the scores of one picture; raises DiskError."""
        self.scores[key] = scores
        self._append(json.dumps({"preset": key[0], "picture": key[1], "scores": scores}) + "\n")

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise DiskError(f"could not write {self.path} ({error}); free some space or choose --run-dir") from error
