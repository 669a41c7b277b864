"""What tiles that overlap in the last step only cost in quality and save in time, against tiles that always overlap.

    python -m train.prepare_test_set photos --out output/testset
    python tests/bench/step_tiles.py output/testset [--every 6] [--steps 4] [--markdown docs/results/step_tiles.md]

The embedded default from pure noise. Times are CPU seconds of the whole restoration; both ways take turns on each
picture. Borders: steps across the borders of the last step's tiles over those elsewhere; 1 is none to be seen.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import report
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))
from eam_core.images import load_image
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from eam_core.seams import seam_ratio
from eam_core.tile_plan import BLEND_SIGMA, overlapping_tiles
from train.metrics import luma_metric, perceptual_metric

PRESETS = ("plain", "light", "stock")
WAYS = {"overlap in the last step": False, "overlap in every step": True}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("testset", type=Path)
    parser.add_argument("--every", type=int, default=6, help="take each so many pictures")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    restorer, perceptual, psnr = Restorer.embedded(), perceptual_metric("stlpips"), luma_metric("psnr")
    config = RestoreConfig(steps=options.steps, sigma_start=1.0)
    names = sorted(path.name for path in (options.testset / "hr").iterdir())[:: options.every]
    lines = [
        "# Tiles that overlap in the last step only",
        "",
        f"`python tests/bench/step_tiles.py` on {report.machine()}: {len(names)} crops of 512 px for each degradation,",
        f"{options.steps} steps from pure noise, tiles of at most {config.tile} px that overlap by at least "
        f"{config.overlap} px. Time is CPU seconds of the whole restoration; borders are steps across the borders",
        "of the last step's tiles over those elsewhere.",
        "",
        "| inputs | tiles | ST-LPIPS ↓ | PSNR-Y ↑ | borders | time |",
        "|---|---|---|---|---|---|",
    ]
    for preset in PRESETS:
        found: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
        for name in names:
            original = load_image(options.testset / "hr" / name).rgb
            degraded = load_image(options.testset / f"lr-{preset}" / name).rgb
            for way, every in WAYS.items():
                start = time.process_time()
                picture = restorer.restore(degraded, dataclasses.replace(config, blend_every_step=every))
                spent = time.process_time() - start
                side = picture.shape[-1]
                grid = overlapping_tiles(config.latent_grid(side // 8, side // 8)).scaled(8)
                with torch.no_grad():
                    scores = perceptual(picture, original).item(), psnr(picture, original).item()
                found[way].append((*scores, seam_ratio(picture, grid, 16) or 1.0, spent))
        means = {way: [statistics.mean(column) for column in zip(*rows)] for way, rows in found.items()}
        slowest = means["overlap in every step"][3]
        for way, (lpips, decibels, borders, spent) in means.items():
            lines.append(f"| {preset} | {way} | {lpips:.4f} | {decibels:.2f} | {borders:.3f} | {spent / slowest:.2f} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        "The one step of the embedded default is the last, so its results are the same either way.",
        "No base with text was measured: there, earlier steps decide more of the picture, which is why borders move",
        f"from step to step and tiles overlap wherever sigma is at most {BLEND_SIGMA}.",
    ]
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
