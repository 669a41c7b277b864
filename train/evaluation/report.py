"""The report of an evaluation in Markdown: means, paired differences, and what exactly was computed."""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from train.evaluation.metrics import LoadedMetric
from train.evaluation.scores import Scores
from train.evaluation.statistics import RESAMPLES, Interval, bootstrap


def markdown(scores: Scores, *, protocol: str, square: int | None, against: str) -> str:
    """Write the report.

    Args:
        scores: what was found.
        protocol: its name.
        square: edge of the central square that was scored, None for whole pictures.
        against: method that the others are compared with.

    Returns:
        Markdown text.
    """
    whole = "whole pictures" if square is None else f"the central square of {square} x {square} pixels"
    count = len(scores.images)
    lines = [
        f"# Scores by protocol `{protocol}`",
        "",
        f"{count} pictures, {whole}. Mean and 95 % bootstrap interval over the pictures ({RESAMPLES:,} resamples, "
        "fixed seed); the best mean of each column is bold.",
        "",
        *_table(scores, scores.methods, lambda metric, method: _mean_cell(scores, metric, method)),
    ]
    others = [method for method in scores.methods if method != against]
    if others:
        lines += [
            "",
            f"## Difference to {against}",
            "",
            "Paired by picture, with 95 % bootstrap interval; *better* or *worse* where the interval leaves out 0.",
            "",
            *_table(scores, others, lambda metric, method: _difference_cell(scores, metric, method, against)),
        ]
    lines += ["", "## Metrics", ""]
    lines += [f"- {loaded.metric.title} `{loaded.metric.name}`: {loaded.id}" for loaded in scores.metrics]
    lines += [f"- {title}: missing, {reason}" for title, reason in scores.missing.items()]
    lines += _gaps(scores)
    lines += ["", f"Computed with torch {version('torch')} and numpy {version('numpy')}."]
    return "\n".join(lines) + "\n"


def _table(scores: Scores, methods: Sequence[str], cell) -> list[str]:
    headings = [f"{loaded.metric.title} {loaded.metric.arrow}" for loaded in scores.metrics]
    lines = ["| method | " + " | ".join(headings) + " |", "|---" * (1 + len(headings)) + "|"]
    for method in methods:
        cells = [method.replace("|", "\\|"), *(cell(loaded, method) for loaded in scores.metrics)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _common(scores: Scores, metric: LoadedMetric) -> dict[str, np.ndarray]:
    """Scores by method of the pictures that every method has a score of: nothing else compares."""
    of_all = {method: scores.of(method, metric.metric.name) for method in scores.methods}
    common = np.isfinite(np.stack(list(of_all.values()))).all(axis=0)
    return {method: values[common] for method, values in of_all.items()}


def _mean_cell(scores: Scores, loaded: LoadedMetric, method: str) -> str:
    values = _common(scores, loaded)
    interval = bootstrap(values[method])
    if np.isnan(interval.mean):
        return "no score"
    digits = loaded.metric.decimals
    means = {name: round(float(of_method.mean()), digits) for name, of_method in values.items()}
    best = min(means.values()) if loaded.metric.lower_is_better else max(means.values())
    mean = f"{interval.mean:.{digits}f}"
    bold = means[method] == best and len(means) > 1
    return (f"**{mean}**" if bold else mean) + _bounds(interval, f".{digits}f")


def _difference_cell(scores: Scores, loaded: LoadedMetric, method: str, against: str) -> str:
    values = _common(scores, loaded)
    interval = bootstrap(values[method] - values[against])
    if np.isnan(interval.mean):
        return "no score"
    form = f"+.{loaded.metric.decimals}f"
    cell = f"{interval.mean:{form}}" + _bounds(interval, form)
    if interval.leaves_out_zero:
        cell += " *worse*" if (interval.mean > 0) == loaded.metric.lower_is_better else " *better*"
    return cell


def _bounds(interval: Interval, form: str) -> str:
    return "" if np.isnan(interval.low) else f" [{interval.low:{form}}, {interval.high:{form}}]"


def _gaps(scores: Scores) -> list[str]:
    lines = []
    for loaded in scores.metrics:
        left_out = len(scores.images) - len(next(iter(_common(scores, loaded).values())))
        if left_out:
            lines.append(
                f"- {loaded.metric.title} gave no number for some method on {left_out} of {len(scores.images)} "
                "pictures, which are left out of its column."
            )
    return lines
