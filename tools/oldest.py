"""Run the core's tests on the oldest versions that pyproject.toml allows, in an environment of their own.

python tools/oldest.py [pytest options]     the environment goes into .cache/oldest; needs a package registry

torch and torchvision are those of the environment that runs this: older ones come with gigabytes of CUDA on most
machines. TORCH=oldest takes the oldest of them too.
"""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from comfy_install import REPO

HOME = REPO / ".cache" / "oldest"
# A tool that fetches interpreters from elsewhere when one is missing would surprise people behind a firewall.
ENVIRONMENT = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}


def main() -> int:
    """Make the environment, run the tests and return their status."""
    python = HOME / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(HOME))
    with tempfile.TemporaryDirectory() as scratch:
        versions = Path(scratch) / "oldest.txt"
        kept = Path(scratch) / "kept.txt"
        names = () if os.environ.get("TORCH") == "oldest" else ("torch", "torchvision")
        kept.write_text("".join(f"{name}=={version(name)}\n" for name in names), encoding="utf-8")
        _uv(*_resolve(kept), "--python", str(python), "--output-file", str(versions))
        print(versions.read_text(encoding="utf-8"), flush=True)
        _uv("pip", "install", "--python", str(python), *_links(), "-r", str(versions))
    _uv("pip", "install", "--python", str(python), "--no-deps", "--editable", str(REPO))
    tests = [str(python), "-P", "-m", "pytest", "tests/core", *sys.argv[1:]]
    return subprocess.run(tests, cwd=REPO, env=ENVIRONMENT).returncode


def _resolve(kept: Path) -> list[str]:
    """Return the command that finds the oldest versions of everything that pyproject.toml names, but for `kept`."""
    command = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--all-extras"]
    return [*command, "--resolution", "lowest-direct", "--override", str(kept), *_links(), "pyproject.toml"]


def _links() -> list[str]:
    """Return options for the folders of wheels that pip is told of."""
    return [option for folder in os.environ.get("PIP_FIND_LINKS", "").split() for option in ("--find-links", folder)]


def _uv(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "uv", *arguments], cwd=REPO, env=ENVIRONMENT)
    if done.returncode:
        sys.exit(f"uv {arguments[0]} failed; its message stands above")


if __name__ == "__main__":
    sys.exit(main())
