"""The report of an ablation: a Markdown table with confidence intervals, and the arms' convergence as a plot."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from eam_core.errors import EAMError
from train.ablation_plan import Run, Table
from train.control_task import ControlConfig
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


def write_report(table: Table, runs: Sequence[Run], base: ControlConfig, folder: Path) -> Path:
    """Write its Markdown and its plot (tableN.md, tableN.png) from finished runs.

    Args:
        table: which ablation.
        runs: all of its runs, trained and scored.
        base: the settings that the arms share.
        folder: where both files go.

    Returns:
        The Markdown file.
    """
    scores = {(run.arm.name, run.seed): _mean_scores(run) for run in runs}
    metrics = list(next(iter(scores.values())))
    seeds = sorted({run.seed for run in runs})
    arms = list({run.arm.name: run.arm for run in runs}.values())
    last = arms[-1].name
    lines = [
        f"# {table.label}: {table.title}",
        "",
        f"The paper's claim: {table.claim}",
        "",
        _settings(base, seeds),
        "",
        f"Mean over {len(seeds)} seeds ± half the 95 % confidence interval; in brackets the difference to {last!r}, "
        "paired by seed, marked where its interval leaves out 0.",
        "",
        "| arm | " + " | ".join(f"{name} {_arrow(name)}" for name in metrics) + " | images/s |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for arm in arms:
        cells = [arm.name]
        for metric in metrics:
            own = [scores[arm.name, seed][metric] for seed in seeds]
            mean, half = interval(own)
            cell = f"{mean:.3f} ± {half:.3f}"
            if arm.name != last:
                change, spread = interval([a - scores[last, s][metric] for a, s in zip(own, seeds)])
                cell += f" ({change:+.3f}{_mark(metric, change, spread)})"
            cells.append(cell)
        speeds = [_summary(run)["images_per_second"] for run in runs if run.arm.name == arm.name]
        lines.append("| " + " | ".join([*cells, f"{sum(speeds) / len(speeds):.1f}"]) + " |")
    plot = folder / f"{table.file_stem}.png"
    _plot(table, runs, plot)
    lines += ["", f"![Validation PSNR over the steps]({plot.name})", ""]
    path = folder / f"{table.file_stem}.md"
    write_text(path, "\n".join(lines))
    return path


def _mean_scores(run: Run) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in json.loads(run.scores.read_text()).items()}


def _summary(run: Run) -> dict:
    return json.loads((run.folder / "summary.json").read_text())


def _arrow(metric: str) -> str:
    return "↑" if HIGHER_IS_BETTER[metric.split(",")[0]] else "↓"


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
    entries = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    curve = {}
    for entry in entries:
        values = [value for name, value in entry.items() if name.startswith("validation/psnr")]
        if values:
            curve[entry["step"]] = sum(values) / len(values)
    return curve
