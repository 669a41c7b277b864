"""Images per second of the stock degradation: ours against the published CPU pipeline, in one run.

    python tests/bench/degradation.py                 # 256 x 256 crops, batch 8, 1 and 2 threads, and CUDA if present
    python tests/bench/degradation.py --size 512 --batch 4

The published pipeline needs the package `basicsr` (with its opencv-python and scipy); install it for this run alone:

    pip install --no-deps --no-build-isolation --target DIR basicsr==1.4.2
    PYTHONPATH=DIR python tests/bench/degradation.py

The package `realesrgan` is not needed: it holds the order of the calls and the stock options, which are repeated below
(RealESRGANDataset draws the kernels, RealESRGANModel.feed_data does the rest, without its pair pool and random crop).
"""

import importlib.util
import itertools
import math
import os
import random
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import report
import torch
import torch.nn.functional as F
from torch import Tensor

from eam_core.degradation import PRESETS, DegradationConfig, degrade
from eam_core.images import load_image, resize
from eam_core.presets import ASSETS

SCALE = 4
KERNELS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
KERNEL_WEIGHTS = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
MODES = ["area", "bilinear", "bicubic"]


def load_basicsr() -> types.SimpleNamespace:
    """Import the functions that are measured and nothing else of the package, which wants a dozen others."""
    found = importlib.util.find_spec("basicsr")
    if found is None:
        sys.exit("The package basicsr is not installed; the first lines of this file say how to install it.")
    (folder,) = found.submodule_search_locations
    for name in ("basicsr", "basicsr.data", "basicsr.utils"):
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = [os.path.join(folder, *name.split(".")[1:])]
    # It wants one function from where old versions of torchvision had it; torchvision itself is not needed for that.
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional_tensor"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.transforms.functional_tensor"].rgb_to_grayscale = luma
    from basicsr.data import degradations
    from basicsr.utils.diffjpeg import DiffJPEG
    from basicsr.utils.img_process_util import USMSharp, filter2D

    return types.SimpleNamespace(
        degradations=degradations, filter2D=filter2D, jpeger=DiffJPEG(differentiable=False), sharpener=USMSharp()
    )


def luma(images: Tensor, num_output_channels: int) -> Tensor:
    """Do what torchvision's rgb_to_grayscale does for one channel."""
    assert num_output_channels == 1
    red, green, blue = images.unbind(dim=-3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(dim=-3)


def draw_kernel(basicsr: types.SimpleNamespace, sigma: tuple[float, float]) -> np.ndarray:
    """Draw a blur kernel as RealESRGANDataset does."""
    size = random.choice(range(7, 22, 2))
    if np.random.uniform() < 0.1:
        cutoff = np.random.uniform(math.pi / (3 if size < 13 else 5), math.pi)
        kernel = basicsr.degradations.circular_lowpass_kernel(cutoff, size, pad_to=False)
    else:
        kernel = basicsr.degradations.random_mixed_kernels(
            KERNELS, KERNEL_WEIGHTS, size, sigma, sigma, [-math.pi, math.pi], [0.5, 4], [1, 2], noise_range=None
        )
    return np.pad(kernel, (21 - size) // 2)


def draw_final_kernel(basicsr: types.SimpleNamespace) -> np.ndarray:
    """Draw the last sinc kernel, or the kernel that changes nothing."""
    if np.random.uniform() < 0.8:
        size, cutoff = random.choice(range(7, 22, 2)), np.random.uniform(math.pi / 3, math.pi)
        return basicsr.degradations.circular_lowpass_kernel(cutoff, size, pad_to=21)
    kernel = np.zeros((21, 21))
    kernel[10, 10] = 1
    return kernel


def published(basicsr: types.SimpleNamespace, images: Tensor, config: DegradationConfig) -> Tensor:
    """Degrade a batch with the published functions in the order of feed_data, stock options."""
    batch, _, height, width = images.shape
    drawn = zip(
        *(
            (draw_kernel(basicsr, (0.2, 3)), draw_kernel(basicsr, (0.2, 1.5)), draw_final_kernel(basicsr))
            for _ in range(batch)
        )
    )
    first, second, final = (torch.from_numpy(np.stack(kernels)).float() for kernels in drawn)
    out = basicsr.filter2D(basicsr.sharpener(images) if config.sharpen_weight else images, first)
    factor = draw_factor((0.2, 0.7, 0.1), (0.15, 1.5))
    out = F.interpolate(out, scale_factor=factor, mode=random.choice(MODES))
    out = compress(basicsr, add_noise(basicsr, out, (1, 30), (0.05, 3)))
    if np.random.uniform() < 0.8:
        out = basicsr.filter2D(out, second)
    factor = draw_factor((0.3, 0.4, 0.3), (0.3, 1.2))
    size = (int(height / SCALE * factor), int(width / SCALE * factor))
    out = F.interpolate(out, size=size, mode=random.choice(MODES))
    out = add_noise(basicsr, out, (1, 25), (0.05, 2.5))
    size = (height // SCALE, width // SCALE)
    if np.random.uniform() < 0.5:
        out = basicsr.filter2D(F.interpolate(out, size=size, mode=random.choice(MODES)), final)
        out = compress(basicsr, out)
    else:
        out = F.interpolate(compress(basicsr, out), size=size, mode=random.choice(MODES))
        out = basicsr.filter2D(out, final)
    return (out * 255).round().clamp(0, 255) / 255


def draw_factor(weights: tuple[float, ...], limits: tuple[float, float]) -> float:
    """Draw a resize factor: up, down or keep."""
    factors = (np.random.uniform(1, limits[1]), np.random.uniform(limits[0], 1), 1)
    return random.choices(factors, weights)[0]


def add_noise(basicsr: types.SimpleNamespace, images: Tensor, sigma: tuple, scale: tuple) -> Tensor:
    """Add Gaussian or Poisson noise, each half of the time."""
    settings = {"clip": True, "rounds": False, "gray_prob": 0.4}
    if np.random.uniform() < 0.5:
        return basicsr.degradations.random_add_gaussian_noise_pt(images, sigma_range=sigma, **settings)
    return basicsr.degradations.random_add_poisson_noise_pt(images, scale_range=scale, **settings)


def compress(basicsr: types.SimpleNamespace, images: Tensor) -> Tensor:
    """Clamp and pass through the published JPEG."""
    return basicsr.jpeger(images.clamp(0, 1), quality=images.new_zeros(len(images)).uniform_(30, 95)).contiguous()


def crops(batch: int, size: int) -> Tensor:
    """Cut a batch from the enlarged sample photo."""
    photo = resize(load_image(ASSETS / "sample_lr.png").rgb, (2 * size, 2 * size)).clamp(0, 1)
    starts = np.linspace(0, size, batch, dtype=int)
    return torch.cat([photo[..., top : top + size, left : left + size] for top, left in zip(starts, starts[::-1])])


def seconds(function: Callable[[], Tensor], device: torch.device) -> float:
    """Time one call, everything on the device included."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def compare(
    basicsr: types.SimpleNamespace, images: Tensor, config: DegradationConfig, rounds: int, device: torch.device
) -> tuple[float, float]:
    """Return images per second (published, ours); the two take turns, so that a busy machine slows both."""
    ours_images, spent, cpu = images.to(device), [0.0, 0.0], torch.device("cpu")
    for number in range(-2, rounds):
        seeds = range(number * len(images), (number + 1) * len(images))
        taken = (
            seconds(lambda: published(basicsr, images, config), cpu),
            seconds(lambda: degrade(ours_images, SCALE, config, seeds), device),  # noqa: B023
        )
        if number >= 0:
            spent = [total + new for total, new in zip(spent, taken)]
    return tuple(rounds * len(images) / total for total in spent)


def main() -> None:
    """Print a line per number of threads and one for CUDA, with and without the sharpening, which dominates."""
    parser = report.parser(__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=24, help="batches that are timed; their parameters differ")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    basicsr, images = load_basicsr(), crops(args.batch, args.size)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    print(f"{report.machine()}; basicsr 1.4.2")
    print(f"stock, scale {SCALE}, batch {args.batch} of {args.size} x {args.size}, {args.rounds} batches each")
    settings = [(threads, torch.device("cpu")) for threads in args.threads]
    if torch.cuda.is_available():
        settings.append((max(args.threads), torch.device("cuda")))
    configs = {"whole": PRESETS["stock"], "without sharpening": replace(PRESETS["stock"], sharpen_weight=0.0)}
    faster: dict[str, float] = {}
    for (threads, device), (what, config) in itertools.product(settings, configs.items()):
        torch.set_num_threads(threads)
        theirs, ours = compare(basicsr, images, config, args.rounds, device)
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(
            f"{what}, {threads} thread(s), ours on {where}: published {theirs:.1f}/s, ours {ours:.1f}/s, "
            f"{ours / theirs:.2f}x"
        )
        if what == "whole":
            faster[device.type] = min(ours / theirs, faster.get(device.type, ours / theirs))
    name = "degradation, stock, times faster than the public CPU pipeline"
    bars = (("on the same cores", "cpu", 1.5), ("on one GPU", "cuda", 50.0))
    rows = [
        report.Row(row=10, name=f"{name}, {where}", value=faster.get(kind), bar=bar, limit="at least")
        for where, kind, bar in bars
    ]
    report.finish(rows, args.rows)


if __name__ == "__main__":
    main()
