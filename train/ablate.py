"""Repeat an ablation of the paper (EAM Tables 2 to 5) at a chosen size: train every arm with several seeds, and score.

python -m train.ablate 4 --size tiny --seeds 0 1 2 --steps 400 --data data/photos --out docs/results

Runs lie in --run-dir under names made of their settings; arms that two tables share are trained once, and what is
finished is not trained again. Writes table4.md (means, 95 % confidence intervals over the seeds) and table4.png.
"""

import argparse
import dataclasses
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eam_core.errors import EAMError
from eam_core.flow import schedule
from eam_core.model.autoencoder import unscale_latents
from train.ablation_plan import TABLES, Run, plan
from train.ablation_report import write_report
from train.control_task import ControlConfig, ControlTask
from train.data import TrainingData
from train.metrics import MetricError, perceptual_metric
from train.objective import sample_noise
from train.options import run_script
from train.pairs import make_pairs
from train.recipes import RECIPES
from train.restoring import sample
from train.run_folder import write_text
from train.train_psi_dit import train_control

# Number of Euler steps and where they start: as the embedded default is used, and from pure noise.
SAMPLINGS = ((1, 0.7), (8, 1.0))


def execute(run: Run, count: int, threads: int | None = None) -> Path:
    """Train and score one run, as far as that is not done; returns the file with its scores."""
    if threads:
        torch.set_num_threads(threads)
    scores = run.scores
    if not (run.folder / "summary.json").exists():
        train_control(run.config)
    if not scores.exists():
        write_text(scores, json.dumps(score(run, count), indent=2) + "\n")
    return scores


@torch.no_grad()
def score(run: Run, count: int) -> dict[str, list[float]]:
    """Restore held-out pictures in every way of SAMPLINGS and return each picture's scores by "metric, sampling"."""
    config = run.config
    if run.arm.test_captions:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, captions=run.arm.test_captions))
    parts = dataclasses.replace(config.parts, start=str(run.folder / "control.safetensors"))
    task = ControlTask(dataclasses.replace(config, parts=parts))
    module, model = task.module.eval(), task.module.model
    data = TrainingData(config.data, seed=0, batch_size=1)
    batch = data.held_out_batch(count, config.val_size)
    hr = batch.hr.float() / 255
    text = module.texts(batch.captions, torch.zeros(len(hr), dtype=torch.bool))
    distance = _distance()
    scores: dict[str, list[float]] = {}
    for preset in config.pairs.presets:
        fixed = dataclasses.replace(config.pairs, presets=(preset,), preset_weights=(1.0,))
        pairs = make_pairs(hr, batch.seeds, fixed, module.autoencoder)
        noise = sample_noise(pairs.hr_latents, batch.seeds)
        for steps, start in SAMPLINGS:
            sigmas = schedule(steps, config.objective.shift, start)
            tokens = module.image_tokens(pairs)
            latents = sample(model, pairs.lr_latents, text, noise, sigmas, image_tokens=tokens)
            restored = (module.autoencoder.decode(unscale_latents(latents)).float() / 2 + 0.5).clamp(0, 1)
            way = f"{steps} step{'s' * (steps > 1)} from {start:g}"
            errors = (restored - hr).square().mean((1, 2, 3))
            scores.setdefault(f"PSNR, {way}", []).extend((-10 * errors.log10()).tolist())
            if distance:
                scores.setdefault(f"ST-LPIPS, {way}", []).extend(distance(restored, hr).tolist())
    return scores


def _distance() -> Any:
    try:
        return perceptual_metric("stlpips")
    except MetricError as error:
        print(f"ST-LPIPS is left out: {error}", file=sys.stderr)
        return None


def _execute_all(runs: list[Run], jobs: int, count: int) -> None:
    unique = list({(run.folder, run.arm.test_captions): run for run in runs}.values())
    if jobs == 1:
        for number, run in enumerate(unique):
            print(f"run {number + 1} of {len(unique)}: {run.arm.name}, seed {run.seed}", file=sys.stderr)
            execute(run, count)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ["TQDM_DISABLE"] = "1"  # one bar for all runs instead of one each
    sharing: dict[Path, list[Run]] = {}  # arms that are only scored differently share what was trained
    for run in unique:
        sharing.setdefault(run.folder, []).append(run)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_execute_sharing, runs, count, threads) for runs in sharing.values()]
        for future in tqdm(as_completed(waiting), total=len(waiting), desc="runs", disable=False):
            future.result()


def _execute_sharing(runs: list[Run], count: int, threads: int) -> None:
    for run in runs:
        execute(run, count, threads)


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(TABLES), help="number of the paper's table, or our own")
    parser.add_argument("--size", choices=sorted(RECIPES), default="tiny", help="recipe that all arms start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run per arm and seed")
    parser.add_argument("--steps", type=int, help="steps of each run; the recipe's when left out")
    parser.add_argument("--batch-size", type=int, help="samples per step; the recipe's when left out")
    parser.add_argument("--crop-size", type=int, help="pixels; the recipe's when left out")
    parser.add_argument("--loss", choices=("velocity", "denoised", "picture"), help="the recipe's when left out")
    parser.add_argument("--mask-share", type=float, default=0.7, help="share of the steps with masks (table 4)")
    parser.add_argument("--data", nargs="+", help="training pictures; the recipe's when left out")
    parser.add_argument("--base", help="frozen base; the recipe's when left out")
    parser.add_argument("--autoencoder", help="autoencoder; the recipe's when left out")
    parser.add_argument(
        "--text-cache", help="of train.cache_text, with the captions of --data; the recipe's when left out"
    )
    parser.add_argument("--caption-dir", help="of train.caption, with captions of both kinds for table 5")
    parser.add_argument("--count", type=int, default=16, help="held-out pictures that are scored, per degradation")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--run-dir", default="runs/ablations", help="where the runs lie")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the report goes")
    return parser


def base_config(options: argparse.Namespace) -> ControlConfig:
    """Return the recipe with the given options.

    Raises:
        EAMError: a value is out of range.
    """
    config = RECIPES[options.size]()
    try:
        loop = _given(config.loop, steps=options.steps, batch_size=options.batch_size)
        size = (options.crop_size,) if options.crop_size else None
        captions = "sa" if options.text_cache else None
        masked_steps = round(config.objective.masked_steps / config.loop.steps * loop.steps)
        return dataclasses.replace(
            config,
            parts=_given(
                config.parts, base=options.base, autoencoder=options.autoencoder, text_cache=options.text_cache
            ),
            data=_given(
                config.data,
                data=tuple(options.data) if options.data else None,
                crop_sizes=size,
                captions=captions,
                caption_dir=options.caption_dir,
            ),
            objective=_given(config.objective, loss=options.loss, masked_steps=masked_steps),
            loop=dataclasses.replace(loop, validate_every=max(1, loop.steps // 6), save_every=max(1, loop.steps // 4)),
            val_size=options.crop_size or config.val_size,
        )
    except ValueError as error:
        raise EAMError(str(error)) from error


def _given(config: Any, **values: Any) -> Any:
    return dataclasses.replace(config, **{name: value for name, value in values.items() if value is not None})


def main() -> None:
    """Run from the command line."""
    options = build_parser().parse_args()
    base, table = base_config(options), TABLES[options.table]
    if options.table == "5" and not base.parts.text_cache:
        raise EAMError(
            f"expected a recipe with text for table 5, got {options.size!r}, whose base knows none; use --size eam, or "
            "--base and --text-cache"
        )
    runs = plan(table, base, options.seeds, options.mask_share, options.run_dir)
    _execute_all(runs, options.jobs, options.count)
    report = write_report(table, runs, base, options.out)
    print(report.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_script(main)
