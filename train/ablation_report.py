"""The report of an ablation: a Markdown table with confidence intervals, and the arms' convergence as a plot."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from eam_core.errors import EAMError
from train.ablation_models import OWN, Given
from train.ablation_plan import Run, Table
from train.ablation_scores import way_name
from train.control_task import ControlConfig
from train.evaluation.statistics import bootstrap
from train.run_folder import write_text

HIGHER_IS_BETTER = {"PSNR": True, "ST-LPIPS": False}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % confidence interval (Student's t; nan for a single value)."""
    from scipy import stats

    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, float("nan")
    deviation = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    return mean, float(stats.t.ppf(0.975, count - 1)) * deviation / count**0.5


Scored = tuple[Given, dict[str, list[float]]]
"""A model that was not trained here, and its scores of every picture by "metric, way"."""


def write_report(
    table: Table, runs: Sequence[Run], base: ControlConfig, folder: Path, given: Sequence[Scored] = ()
) -> Path:
    """Write its Markdown and its plot (tableN.md, tableN.png) from finished runs; without runs there is no plot.

    Args:
        table: which ablation.
        runs: all of its runs, trained and scored.
        base: the settings that the arms share.
        folder: where both files go.
        given: models that are scored beside the arms, or alone.

    Returns:
        The Markdown file.
    """
    scores = {(run.arm.name, run.seed): _mean_scores(run) for run in runs}
    found = [*scores.values(), *(of_model for _, of_model in given)]
    metrics = list(dict.fromkeys(name for columns in found for name in columns))
    lines = [f"# {table.label}: {table.title}", ""]
    lines += _about_arms(table, runs, base) if runs else []
    lines += _about_models(base, given) if given else []
    speed = ["images/s"] if runs else []
    lines.append("| " + " | ".join(["arm" if runs else "model", *map(_heading, metrics), *speed]) + " |")
    lines.append("|---" * (len(metrics) + len(speed) + 1) + "|")
    rows = [_arm_row(name, runs, scores, metrics) for name in dict.fromkeys(run.arm.name for run in runs)]
    rows += [[*_model_row(*scored, metrics), *("-" for _ in speed)] for scored in given]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    if runs:
        plot = folder / f"{table.file_stem}.png"
        _plot(table, runs, plot)
        lines += ["", f"![Validation PSNR over the steps]({plot.name})"]
    path = folder / f"{table.file_stem}.md"
    write_text(path, "\n".join([*lines, ""]))
    return path


def _about_arms(table: Table, runs: Sequence[Run], base: ControlConfig) -> list[str]:
    seeds = sorted({run.seed for run in runs})
    return [
        f"The paper's claim: {table.claim}",
        "",
        _settings(base, seeds),
        "",
        f"Mean over {len(seeds)} seeds ± half the 95 % confidence interval; in brackets the difference to "
        f"{runs[-1].arm.name!r}, paired by seed, marked where its interval leaves out 0.",
        "",
    ]


def _about_models(base: ControlConfig, given: Sequence[Scored]) -> list[str]:
    presets = base.pairs.presets
    count = len(next(iter(given[0][1].values()))) // len(presets)
    pictures = f"{count} held-out picture{'s' * (count > 1)} of {base.val_size} px"
    lines = [
        "Models marked 'not trained here' were given as they are, on a base of their own: no arms of an ablation. They "
        f"are scored on {pictures}, those of the arms, reduced {base.pairs.scale} times with {' and '.join(presets)} "
        "degradation; in square brackets a 95 % bootstrap interval over these pictures. What they were trained on may "
        f"hold some of them. '{OWN}' are those of the family, below; the other ways are the arms', without guidance, "
        "and '-' is a way that a model does not have.",
        "",
    ]
    return [*lines, *(f"- {_about_model(model)}" for model, _ in given), ""]


def _about_model(given: Given) -> str:
    model, own = given.model, given.own
    steps = way_name(own.steps, own.sigma_start)
    words = {"none": "no captions"}.get(given.words.captions, f"{given.words.captions} captions")
    words += f", negative prompt {own.negative_prompt!r}" if own.negative_prompt else ""
    files = [f"{part} `{_short(getattr(model, part))}`" for part in ("control", "base", "autoencoder")]
    return (
        f"{model.name}: {', '.join(files)}; {OWN} {steps}, {own.sampler}, CFG {own.cfg_scale:g}, tiles of {own.tile} "
        f"px, colours {own.color_fix}; {words}"
    )


def _short(path: Path) -> str:
    """Name a file by the folder that it lies in as well: many are called transformer."""
    return "/".join(path.resolve().parts[-2:])


def _arm_row(
    name: str, runs: Sequence[Run], scores: dict[tuple[str, int], dict[str, float]], metrics: Sequence[str]
) -> list[str]:
    seeds, last = sorted({run.seed for run in runs}), runs[-1].arm.name
    cells = [name]
    for metric in metrics:
        if metric not in scores[name, seeds[0]]:
            cells.append("-")
            continue
        own = [scores[name, seed][metric] for seed in seeds]
        mean, half = interval(own)
        cell = f"{mean:.3f} ± {half:.3f}"
        if name != last:
            change, spread = interval([a - scores[last, s][metric] for a, s in zip(own, seeds)])
            cell += f" ({change:+.3f}{_mark(metric, change, spread)})"
        cells.append(cell)
    speeds = [_summary(run)["images_per_second"] for run in runs if run.arm.name == name]
    return [*cells, f"{sum(speeds) / len(speeds):.1f}"]


def _model_row(given: Given, scores: dict[str, list[float]], metrics: Sequence[str]) -> list[str]:
    cells = [f"{given.model.name}, not trained here, base `{_short(given.model.base)}`"]
    for metric in metrics:
        if metric not in scores:
            cells.append("-")
            continue
        # One value per picture: its degradations are no further pictures.
        pictures = np.array(scores[metric]).reshape(len(given.config.pairs.presets), -1).mean(axis=0)
        mean, low, high = bootstrap(pictures)
        cells.append(f"{mean:.3f}" + (f" [{low:.3f}, {high:.3f}]" if len(pictures) > 1 else ""))
    return cells


def _mean_scores(run: Run) -> dict[str, float]:
    scores = json.loads(run.scores.read_text(encoding="utf-8"))
    return {name: sum(values) / len(values) for name, values in scores.items()}


def _summary(run: Run) -> dict:
    return json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))


def _heading(metric: str) -> str:
    return f"{metric} {'↑' if HIGHER_IS_BETTER[metric.split(',')[0]] else '↓'}"


def _mark(metric: str, change: float, spread: float) -> str:
    if not abs(change) > spread:
        return ""
    better = (change > 0) == HIGHER_IS_BETTER[metric.split(",")[0]]
    return ", better" if better else ", worse"


def _settings(base: ControlConfig, seeds: list[int]) -> str:
    loop, objective = base.loop, base.objective
    return (
        f"Recipe {base.recipe!r}, {loop.steps} steps of {loop.batch_size} crops of "
        f"{' or '.join(map(str, base.data.crop_sizes))} px, learning rate {loop.lr:g}, loss {objective.loss!r}, TALA "
        f"{objective.tala!r}, {' and '.join(base.pairs.presets)} degradation, seeds {', '.join(map(str, seeds))}; "
        f"torch {torch.__version__} on {platform.machine()}. Speeds are of runs that shared the machine."
    )


def _plot(table: Table, runs: Sequence[Run], path: Path) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise EAMError(f"expected the package matplotlib for the plot, found none ({error}); pip install it") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name in dict.fromkeys(run.arm.name for run in runs):
        curves = [_curve(run) for run in runs if run.arm.name == name]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = [[curve[step] for curve in curves] for step in steps]
        line = axes.plot(steps, [sum(v) / len(v) for v in values], marker="o", markersize=3, label=name)[0]
        axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=line.get_color(), alpha=0.15)
    axes.set(xlabel="step", ylabel="validation PSNR (dB), mean of the degradations", title=table.label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _curve(run: Run) -> dict[int, float]:
    """Read the validation PSNR over steps, averaged over the degradations."""
    entries = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = {}
    for entry in entries:
        values = [value for name, value in entry.items() if name.startswith("validation/psnr")]
        if values:
            curve[entry["step"]] = sum(values) / len(values)
    return curve
