"""Score restored pictures of several methods side by side, with intervals and picture sheets.

    python -m train.evaluate --sr ours=out/ours bicubic=out/bicubic --hr DIR/hr --lr DIR/lr-light \\
        --protocol offline --out results/light

    python -m train.evaluate --lr DIR/lr-stock --hr DIR/hr --protocol offline --out results/models --scale 4 \\
        --restore eam=CONTROL,BASE,VAE,TEXT dit4sr=dit4sr_q,SD35_BASE,VAE,TEXT tsdsr=tsdsr,SD3_BASE,VAE plain=embedded

--restore runs models of any control family on --lr first, into --out/restored/NAME; what is there is kept. Models with
text are told --captions (from --caption-dir, or beside the inputs) and --negative-prompt.
Writes into --out: scores.csv (every picture), scores.md (means, paired differences, metric ids), sheet.jpg (crops)
and with --extremes METRIC extremes.jpg (the first method's five best and five worst pictures). Pictures belong together
by their name without suffix. A run that was stopped goes on with the same command. Nothing is downloaded unless
--download is given: a metric without its package or weights is reported as missing.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eam_core.console import show_any_text
from eam_core.errors import EAMError
from train.evaluation.metrics import find_metric, load_metrics
from train.evaluation.models import SYNTAX, Model
from train.evaluation.pictures import match_pictures
from train.evaluation.protocols import PROTOCOLS, Protocol
from train.evaluation.report import markdown
from train.evaluation.restoring import restore_folder
from train.evaluation.scores import Scores, score_pictures
from train.evaluation.sheet import comparison_sheet, extremes_sheet
from train.evaluation.words import Words
from train.metrics import MetricError
from train.run_folder import write_text


def evaluate(
    sr: Mapping[str, Path],
    out: Path,
    *,
    protocol: Protocol,
    hr: Path | None = None,
    lr: Path | None = None,
    metrics: Sequence[str] = (),
    against: str | None = None,
    sheet_images: Sequence[str] = (),
    extremes: str | None = None,
    download: bool = False,
    device: str = "cpu",
) -> Scores:
    """Score folders of results and write scores.csv, scores.md and the sheets.

    Args:
        sr: folder of results by method; the first one's extremes are shown.
        out: folder to write.
        protocol: which part of the pictures is scored, and which metrics unless `metrics` says otherwise.
        hr: folder of originals; without it only metrics that need none are computed.
        lr: folder of inputs, for PSNR-LR and the sheets.
        metrics: names to compute instead of the protocol's; if all of them start with "+", in addition to them.
        against: method that the others are compared with, the first one when None.
        sheet_images: pictures on the sheet, by name; some spread evenly over the set when empty.
        extremes: name of the metric that chooses the best and worst pictures; no such sheet when None.
        download: let packages fetch weights.
        device: where networks run, as torch names it.

    Returns:
        All scores.

    Raises:
        ImageError: pictures are missing, unreadable, or of sizes that do not fit.
        MetricError: a metric is unknown, none can be computed, or that of `extremes` cannot.
        ValueError: `against` names no method.
    """
    against = against or next(iter(sr))
    if against not in sr:
        raise ValueError(f"--against: expected one of {', '.join(sr)}, got {against!r}")
    names = _chosen(protocol, metrics)
    pictures = match_pictures(sr, hr=hr, lr=lr, square=protocol.square)
    given = {reference for reference, folder in (("hr", hr), ("lr", lr)) if folder}
    loaded, missing = load_metrics(names, references=given, download=download, device=device)
    if not loaded:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in missing.items())
        raise MetricError(f"expected a metric that can be computed, got none ({reasons}).")
    if extremes and extremes not in [found.metric.name for found in loaded]:
        raise MetricError(f"--extremes: expected a computed metric, got {extremes}; name it in --metrics as well.")
    sheet = comparison_sheet(pictures, sheet_images)
    out.mkdir(parents=True, exist_ok=True)
    sheet.save(out / "sheet.jpg", quality=92)
    scores = score_pictures(pictures, loaded, missing, out / "scores.csv", square=protocol.square)
    text = markdown(scores, protocol=protocol.name, square=protocol.square, against=against)
    write_text(out / "scores.md", text)
    if extremes:
        extremes_sheet(pictures, scores, extremes).save(out / "extremes.jpg", quality=92)
    return scores


def _chosen(protocol: Protocol, metrics: Sequence[str]) -> list[str]:
    names = [name.removeprefix("+") for name in metrics]
    if metrics and all(name.startswith("+") for name in metrics):
        names = [*protocol.metrics, *names]
    return [find_metric(name).name for name in names or protocol.metrics]


def named_folder(text: str) -> tuple[str, Path]:
    """Read NAME=DIR, or DIR alone, whose last part is then the name; an "=" after a "/" belongs to the path."""
    name, equals, folder = text.partition("=")
    if not equals or "/" in name:
        name, folder = Path(text).name, text
    if not (name and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=DIR or DIR, got {text!r}")
    return name, Path(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sr", type=named_folder, nargs="+", action="extend", default=[], metavar="[NAME=]DIR", help="results")
    add(
        "--restore",
        nargs="+",
        action="extend",
        default=[],
        metavar=SYNTAX,
        help="restore --lr with this model first; NAME=embedded for the embedded default",
    )
    add("--scale", type=float, default=4.0, help="enlargement of --restore (default 4)")
    add("--captions", choices=("sa", "da"), help="captions that --restore tells models with text (default: none)")
    add("--caption-dir", default="", metavar="DIR", help="of train.caption; without --captions the sa ones")
    add("--negative-prompt", default="", metavar="TEXT", help="what results of --restore shall not show")
    add("--hr", type=Path, metavar="DIR", help="originals")
    add("--lr", type=Path, metavar="DIR", help="inputs that the results were made from")
    add("--protocol", choices=tuple(PROTOCOLS), required=True)
    add("--out", type=Path, required=True, metavar="DIR")
    add("--metrics", nargs="+", default=(), metavar="ID", help="instead of the protocol's; +ID adds to them")
    add("--against", metavar="NAME", help="method the others are compared with (default: the first)")
    add("--sheet-images", nargs="+", default=(), metavar="NAME", help="pictures on sheet.jpg (default: four)")
    add("--extremes", metavar="ID", help="write extremes.jpg: best and worst pictures by this metric")
    add("--download", action="store_true", help="let pyiqa fetch weights that are missing")
    add("--device", default="cpu", help="where networks run (default: cpu)")
    return parser


def _restored(args: dict[str, Any]) -> list[tuple[str, Path]]:
    """Run the models of --restore; takes its options out of `args`, returns names and folders of the results."""
    models = Model.parse_all(args.pop("restore"))
    kind, folder, negative = (args.pop(name) for name in ("captions", "caption_dir", "negative_prompt"))
    words = Words(captions=kind or ("sa" if folder else "none"), caption_dir=folder, negative_prompt=negative)
    scale = args.pop("scale")
    if words != Words() and not models:
        raise ValueError("--captions and --negative-prompt: expected --restore with them, got none; name a model")
    if models and not args["lr"]:
        raise ValueError("--restore: expected --lr with the inputs, got none; name their folder")
    out, settings = args["out"] / "restored", {"scale": scale, "words": words, "device": args["device"]}
    return [(model.name, restore_folder(model, args["lr"], out, **settings)) for model in models]


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; exit status 2 with one sentence on a mistake in files or settings."""
    args = vars(_parser().parse_args(argv))
    folders = args.pop("sr")
    try:
        folders += _restored(args)
        if not folders:
            raise ValueError("expected results to score, got none; give --sr NAME=DIR, or --restore with --lr")
        names = [name for name, _ in folders]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated:
            raise ValueError(f"--sr: expected methods of different names, got {repeated!r} twice; write NAME=DIR")
        evaluate(dict(folders), args.pop("out"), protocol=PROTOCOLS[args.pop("protocol")], **args)
    except (EAMError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    show_any_text()
    sys.exit(main())
