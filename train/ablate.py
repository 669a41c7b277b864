"""Repeat an ablation of the paper (EAM Tables 2 to 5) at a chosen size: train every arm with several seeds, and score.

python -m train.ablate 4 --size tiny --seeds 0 1 2 --steps 400 --data data/photos --out docs/results

Runs lie in --run-dir under names made of their settings; arms that two tables share are trained once, and what is
finished is not trained again. Writes table4.md (means, 95 % confidence intervals over the seeds) and table4.png.

python -m train.ablate models --size tiny --data data/photos --out docs/results \\
    --restore eam=CONTROL,BASE,VAE,TEXT dit4sr=dit4sr_q,SD35_BASE,VAE,TEXT tsdsr=tsdsr,SD3_BASE,VAE tiny=embedded

--restore adds models of any control family as further rows, scored on the same pictures and not trained here; the table
"models" has no others. Settings that say how arms are trained have no part in them.
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
from train.ablation_models import Given, plan_models, score_model
from train.ablation_plan import MODELS, TABLES, Run, plan
from train.ablation_report import write_report
from train.ablation_scores import score
from train.control_task import ControlConfig
from train.evaluation.models import SYNTAX, Model
from train.evaluation.words import Words
from train.options import run_script
from train.recipes import RECIPES
from train.run_folder import write_text
from train.train_psi_dit import train_control


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
    tables = [*sorted(TABLES), MODELS.name]
    parser.add_argument("table", choices=tables, help="number of the paper's table, or our own; models trains nothing")
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
    _add_restore_options(parser.add_argument_group("models that are not trained here"))
    return parser


def _add_restore_options(group: Any) -> None:
    text = "score this model on the same pictures; NAME=embedded for the embedded default"
    group.add_argument("--restore", nargs="+", action="extend", default=[], metavar=SYNTAX, help=text)
    group.add_argument(
        "--restore-captions",
        choices=("none", "sa", "da"),
        help="what models with text are told of a picture; what the arms are told when left out, else sa with "
        "--caption-dir",
    )
    group.add_argument("--negative-prompt", default="", metavar="TEXT", help="what their results shall not show")
    group.add_argument("--device", default="cpu", help="where they run (default: cpu)")


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
        only_given = bool(options.restore) and not captions and config.data.captions == "none"
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
                caption_dir=None if only_given else options.caption_dir,
            ),
            objective=_given(config.objective, loss=options.loss, masked_steps=masked_steps),
            loop=dataclasses.replace(loop, validate_every=max(1, loop.steps // 6), save_every=max(1, loop.steps // 4)),
            val_size=options.crop_size or config.val_size,
        )
    except ValueError as error:
        raise EAMError(str(error)) from error


def _given(config: Any, **values: Any) -> Any:
    return dataclasses.replace(config, **{name: value for name, value in values.items() if value is not None})


def given_models(options: argparse.Namespace, base: ControlConfig) -> list[Given]:
    """Return the models of --restore, with what they are told.

    Raises:
        EAMError: an option is wrong, or a file is missing.
    """
    if not options.restore and (options.table == MODELS.name or options.restore_captions or options.negative_prompt):
        raise EAMError(f"expected models for {options.table!r} and its options, got none; give --restore {SYNTAX}")
    kind = options.restore_captions or ("none" if options.table == MODELS.name else base.data.captions)
    if not options.restore_captions and kind == "none" and options.caption_dir:
        kind = "sa"
    folder = base.data.caption_dir or options.caption_dir or ""
    words = Words(captions=kind, caption_dir="" if kind == "none" else folder, negative_prompt=options.negative_prompt)
    try:
        return plan_models(Model.parse_all(options.restore), base, words, options.run_dir)
    except ValueError as error:
        raise EAMError(str(error)) from error


def main() -> None:
    """Run from the command line."""
    options = build_parser().parse_args()
    base, table = base_config(options), (TABLES | {MODELS.name: MODELS})[options.table]
    if options.table == "5" and not base.parts.text_cache:
        raise EAMError(
            f"expected a recipe with text for table 5, got {options.size!r}, whose base knows none; use --size eam, or "
            "--base and --text-cache"
        )
    # Before the arms: a mistake in a file shows now, not after hours of training.
    given = [(model, score_model(model, options.count, options.device)) for model in given_models(options, base)]
    runs = plan(table, base, options.seeds, options.mask_share, options.run_dir)
    _execute_all(runs, options.jobs, options.count)
    report = write_report(table, runs, base, options.out, given)
    print(report.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_script(main)
