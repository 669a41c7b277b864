"""Make degraded inputs, enlarge them by interpolation, and score restored photos against the originals.

    python -m train.score_photos inputs HR_DIR LR_DIR --preset light --seed 0
    python -m train.score_photos enlarge LR_DIR SR_DIR --method bicubic
    python -m train.score_photos score --hr HR_DIR --sr bicubic=SR_DIR ours=OTHER_DIR --out TABLE.md

Pictures of one set belong together by their name without suffix.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eam_core.degradation import PRESETS, degrade
from eam_core.errors import EAMError, ImageError
from eam_core.images import list_images, load_image, save_image
from train.metrics import luma_metric, metric_versions, perceptual_metric

# Header of the table, how to load the metric, decimals.
METRICS = {
    "ST-LPIPS alex ↓": (lambda: perceptual_metric("stlpips"), 4),
    "PSNR-Y ↑": (lambda: luma_metric("psnr"), 2),
    "SSIM-Y ↑": (lambda: luma_metric("ssim"), 4),
}
METRIC_IDS = "pyiqa metric ids: stlpips, psnr and ssim (test_y_channel, ycbcr)"


def make_inputs(hr_folder: Path, lr_folder: Path, *, preset: str, scale: int, seed: int) -> int:
    """Degrade every picture of a folder into PNGs of the same names; picture i draws from seed + i.

    Returns:
        How many were written.
    """
    paths = list_images(hr_folder)
    lr_folder.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(paths):
        lr = degrade(load_image(path).rgb, scale, PRESETS[preset], [seed + index])
        save_image(lr, lr_folder / f"{path.stem}.png")
    return len(paths)


def enlarge(lr_folder: Path, sr_folder: Path, *, method: str, scale: int) -> int:
    """Enlarge every picture of a folder with a Pillow filter ("bicubic" or "lanczos"): the baselines.

    Returns:
        How many were written.
    """
    paths = list_images(lr_folder)
    sr_folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        with Image.open(path) as image:
            size = (image.width * scale, image.height * scale)
            large = image.convert("RGB").resize(size, Image.Resampling[method.upper()])
        large.save(sr_folder / f"{path.stem}.png")
    return len(paths)


def _pairs(sr_folder: Path, hr_folder: Path) -> list[tuple[Path, Path]]:
    restored = {path.stem: path for path in list_images(sr_folder)}
    originals = list_images(hr_folder)
    missing = [path.stem for path in originals if path.stem not in restored]
    if missing or not originals:
        raise ImageError(
            f"{sr_folder}: expected a picture for each of the {len(originals)} in {hr_folder}, "
            f"{len(missing)} are missing ({', '.join(missing[:3])}); restore the whole set first."
        )
    return [(restored[path.stem], path) for path in originals]


def _load_pair(sr_path: Path, hr_path: Path) -> tuple[Tensor, Tensor]:
    sr, hr = load_image(sr_path).rgb, load_image(hr_path).rgb
    if sr.shape != hr.shape:
        raise ImageError(
            f"{sr_path}: expected the size of {hr_path}, {list(hr.shape[-2:])}, got {list(sr.shape[-2:])}."
        )
    return sr, hr


@torch.no_grad()
def score(sr_folders: dict[str, Path], hr_folder: Path, out: Path) -> list[dict]:
    """Score restored folders and write a Markdown table of means, with a CSV of all pictures beside it.

    Args:
        sr_folders: method name -> folder with a restored picture for each original.
        hr_folder: the originals.
        out: Markdown file; the CSV takes its name with the suffix .csv.

    Returns:
        One dict per method and picture: method, image, and a value per metric.

    Raises:
        ImageError: pictures are missing or differ in size.
        MetricError: a metric's package is not installed.
    """
    pairs = {name: _pairs(folder, hr_folder) for name, folder in sr_folders.items()}
    metrics = {name: load() for name, (load, _) in METRICS.items()}
    rows = []
    for method, of_method in pairs.items():
        for sr_path, hr_path in tqdm(of_method, desc=method, leave=False):
            sr, hr = _load_pair(sr_path, hr_path)
            values = {name: metric(sr, hr).item() for name, metric in metrics.items()}
            rows.append({"method": method, "image": hr_path.stem, **values})
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["method", "image", *METRICS])
        writer.writeheader()
        writer.writerows(rows)
    out.write_text(_table(rows), encoding="utf-8")
    return rows


def _table(rows: list[dict]) -> str:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    count = sum(row["method"] == methods[0] for row in rows)
    lines = ["| method | " + " | ".join(METRICS) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        means = [f"{sum(row[name] for row in own) / len(own):.{digits}f}" for name, (_, digits) in METRICS.items()]
        lines.append(f"| {method} | " + " | ".join(means) + " |")
    lines += ["", f"Means over {count} pictures; {METRIC_IDS}; {metric_versions()}."]
    return "\n".join(lines) + "\n"


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {text!r}")
    return name, Path(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    inputs = jobs.add_parser("inputs", help="degrade originals into low-resolution inputs")
    inputs.add_argument("hr", type=Path)
    inputs.add_argument("lr", type=Path)
    inputs.add_argument("--preset", choices=tuple(PRESETS), default="plain")
    inputs.add_argument("--scale", type=int, default=4)
    inputs.add_argument("--seed", type=int, default=0)
    baseline = jobs.add_parser("enlarge", help="enlarge inputs by interpolation")
    baseline.add_argument("lr", type=Path)
    baseline.add_argument("sr", type=Path)
    baseline.add_argument("--method", choices=("bicubic", "lanczos"), default="bicubic")
    baseline.add_argument("--scale", type=int, default=4)
    scored = jobs.add_parser("score", help="compare restored pictures with the originals")
    scored.add_argument("--sr", type=_named_folder, nargs="+", required=True, metavar="NAME=FOLDER")
    scored.add_argument("--hr", type=Path, required=True)
    scored.add_argument("--out", type=Path, required=True, help="Markdown table; a CSV is written beside it")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one job from the command line; exit status 2 with one sentence on bad input."""
    args = _parser().parse_args(argv)
    try:
        if args.job == "inputs":
            make_inputs(args.hr, args.lr, preset=args.preset, scale=args.scale, seed=args.seed)
        elif args.job == "enlarge":
            enlarge(args.lr, args.sr, method=args.method, scale=args.scale)
        else:
            score(dict(args.sr), args.hr, args.out)
            print(args.out.read_text(encoding="utf-8"))
    except (EAMError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
