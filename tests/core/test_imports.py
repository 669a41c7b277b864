"""Nothing warns as it is imported: a warning of ours would stand in every user's log."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

# Other people's warnings at import are theirs; ours are told by the file that they arise in, or by who called.
IMPORT_ALL = """
import importlib, pkgutil, sys, warnings
import torch

package, root = sys.argv[1], sys.argv[2]
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
names = [name for name in sys.modules if name.partition(".")[0] == package]
print(len(names), *(f"{w.filename}:{w.lineno}: {w.message}" for w in heard if w.filename.startswith(root)), sep="\\n")
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", *arguments], capture_output=True, encoding="utf-8", timeout=180)


@pytest.mark.parametrize("package", ["eam_core", "train"])
def test_no_module_warns_as_it_is_imported(package: str) -> None:
    done = python("-X", "dev", "-c", IMPORT_ALL, package, str(REPO / package))
    assert done.returncode == 0, done.stderr
    number, *warnings = done.stdout.split("\n")[:-1]
    assert int(number) > 20 and warnings == []


@pytest.mark.parametrize("words", [["--help"], ["upscale", "--help"], ["caption", "--help"]])
def test_the_command_line_starts_with_every_warning_an_error(words: list[str]) -> None:
    done = python("-X", "dev", "-W", "error", "-m", "eam_core", *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_file_of_ours_warns_as_it_is_compiled() -> None:
    # Invalid escapes and comparisons with "is" warn only where no compiled file is kept.
    program = """
import pathlib, sys, warnings
warnings.simplefilter("error")
for folder in sys.argv[1:]:
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")
"""
    done = python("-c", program, *(str(REPO / folder) for folder in ("eam_core", "nodes", "train", "tools", "tests")))
    assert (done.returncode, done.stderr) == (0, "")
