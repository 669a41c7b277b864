"""Measure what the fidelity dial and the number of steps trade: PSNR against ST-LPIPS, as a table and a plot.

    python -m train.dial_curve TEST_SET --out DIR [--count 12]

TEST_SET is a folder of train.prepare_test_set: originals in `hr`, inputs in `lr-*`. Writes dial.csv and dial.png.
With --base, --control and --autoencoder another model than the embedded default is measured.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from tqdm import tqdm

from eam_core.errors import ImageError
from eam_core.images import list_images, load_image
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from train.metrics import luma_metric, perceptual_metric
from train.options import run_script

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIDELITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
STEPS = (1, 2, 4, 8)
FIELDS = ("input", "steps", "fidelity", "psnr", "stlpips")


def settings() -> list[dict[str, Any]]:
    """List the points of the plot: the dial at the model's own number of steps, and all numbers of steps without it."""
    return [{"fidelity": value} for value in FIDELITIES] + [{"fidelity": 0.0, "steps": steps} for steps in STEPS]


def input_folders(test_set: Path) -> dict[str, Path]:
    """Find the inputs of a test set, by the name of their degradation.

    Raises:
        ImageError: it has none, or no originals.
    """
    found = {folder.name.removeprefix("lr-"): folder for folder in sorted(test_set.glob("lr-*"))}
    if not found or not (test_set / "hr").is_dir():
        raise ImageError(
            f"{test_set}: expected a test set with folders hr and lr-*, found none; make one with "
            "python -m train.prepare_test_set photos"
        )
    return found


def measure(restorer: Restorer, test_set: Path, count: int) -> Iterator[dict[str, Any]]:
    """Restore evenly chosen pictures at every point and score them.

    Args:
        restorer: the model.
        test_set: see the script.
        count: pictures per degradation.

    Yields:
        One row of means per degradation and point, see `FIELDS`.
    """
    distance, psnr = perceptual_metric("stlpips"), luma_metric("psnr")
    for name, folder in input_folders(test_set).items():
        paths = list_images(folder)
        chosen = paths[:: max(1, len(paths) // count)][:count]
        pairs = [(load_image(path).rgb, load_image(test_set / "hr" / path.name).rgb) for path in chosen]
        for changes in tqdm(settings(), desc=name):
            config = RestoreConfig.from_spec(restorer.spec, **changes)
            results = [restorer.restore(lr, config) for lr, _ in pairs]
            scores = {
                "psnr": [psnr(sr, hr).item() for sr, (_, hr) in zip(results, pairs)],
                "stlpips": [distance(sr, hr).item() for sr, (_, hr) in zip(results, pairs)],
            }
            means = {metric: round(sum(values) / len(values), 4) for metric, values in scores.items()}
            yield {"input": name, "steps": config.steps, "fidelity": config.fidelity, **means}


def plot(rows: list[dict[str, Any]], own_steps: int, path: Path) -> None:
    """Draw ST-LPIPS over PSNR, one panel per degradation: a line for the dial, one for the steps."""
    names = list(dict.fromkeys(row["input"] for row in rows))
    figure, panels = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.8), squeeze=False)
    for panel, name in zip(panels[0], names):
        own = [row for row in rows if row["input"] == name]
        dial = {row["fidelity"]: row for row in own if row["steps"] == own_steps}
        steps = {row["steps"]: row for row in own if row["fidelity"] == 0}
        for label, points, marker in (("fidelity", dial, "o"), ("steps", steps, "s")):
            line = sorted(points.items())
            x, y = [row["psnr"] for _, row in line], [row["stlpips"] for _, row in line]
            panel.plot(x, y, marker=marker, label=label)
            for (value, _), position in zip(line, zip(x, y)):
                panel.annotate(f"{value:g}", position, textcoords="offset points", xytext=(4, 4), fontsize=8)
        panel.set(title=name, xlabel="PSNR-Y (dB), higher is better", ylabel="ST-LPIPS (alex), lower is better")
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test_set", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for dial.csv and dial.png")
    parser.add_argument("--count", type=int, default=12, help="pictures per degradation")
    for name in ("base", "control", "autoencoder"):
        parser.add_argument(f"--{name}", type=Path, help="of another model; give all three")
    return parser


def main() -> None:
    """Run from the command line."""
    options = build_parser().parse_args()
    files = {name: getattr(options, name) for name in ("base", "control", "autoencoder")}
    restorer = Restorer.from_files(**files) if all(files.values()) else Restorer.embedded()
    rows = list(measure(restorer, options.test_set, options.count))
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "dial.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, RestoreConfig.from_spec(restorer.spec).steps, options.out / "dial.png")


if __name__ == "__main__":
    run_script(main)
