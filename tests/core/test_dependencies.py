"""What pyproject.toml asks for: bounds on both sides, and versions that exist for every Python it names."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPO = Path(__file__).resolve().parents[2]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
RESOLUTIONS = ["highest", "lowest-direct"]
# No interpreter is to be fetched from elsewhere where this machine lacks one.
ENVIRONMENT = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def project() -> dict:
    return tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[Requirement]:
    """Everything that is asked for, our own extras left out."""
    texts = [
        *project()["dependencies"],
        *(text for extra in project()["optional-dependencies"].values() for text in extra),
    ]
    return [found for found in map(Requirement, texts) if found.name != project()["name"]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_both_bounds_are_given(requirement: Requirement) -> None:
    kinds = {specifier.operator for specifier in requirement.specifier}
    assert kinds & {">=", "=="} and kinds & {"<", "<=", "=="}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_what_is_installed_is_within_the_bounds(requirement: Requirement) -> None:
    if importlib.util.find_spec(requirement.name.replace("-", "_").lower()) is None:
        pytest.skip("not installed here, or under another name")
    assert importlib.metadata.version(requirement.name) in requirement.specifier


def test_equal_packages_have_equal_bounds_in_all_extras() -> None:
    bounds: dict[str, set[str]] = {}
    for requirement in requirements():
        bounds.setdefault(requirement.name.lower(), set()).add(str(requirement.specifier))
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_the_tools_know_the_lowest_python() -> None:
    settings = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    assert project()["requires-python"] == f">={PYTHONS[0]}"
    assert settings["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")
    assert "make types" in (REPO / ".ci" / "run").read_text(encoding="utf-8")
    checked = re.findall(r"pyright --pythonversion (\S+)", (REPO / "Makefile").read_text(encoding="utf-8"))
    assert checked == [PYTHONS[0], PYTHONS[-1]]


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """The versions that a registry gives for each Python, lowest and highest; no package is installed."""
    if importlib.util.find_spec("uv") is None:
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("resolved")
    (folder / "one.txt").write_text("iniconfig\n", encoding="utf-8")
    answer = compiled([str(folder / "one.txt")])
    if answer.returncode:
        pytest.skip(f"no package registry answers: {answer.stderr.strip()[-200:]}")
    # Of what we ask for ourselves a wheel must exist: nobody builds numpy to restore a photo.
    wheels = [option for name in {found.name for found in requirements()} for option in ("--only-binary", name)]
    cases = [(python, resolution) for python in PYTHONS for resolution in RESOLUTIONS]

    def resolve(case: tuple[str, str]) -> str:
        options = ["--all-extras", "--python-version", case[0], "--resolution", case[1], *wheels, "pyproject.toml"]
        answer = compiled(options)
        return answer.stdout if answer.returncode == 0 else f"FAILED\n{answer.stderr}"

    with ThreadPoolExecutor(len(PYTHONS)) as pool:
        return dict(zip(cases, pool.map(resolve, cases)))


def compiled(options: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *options]
    return subprocess.run(command, cwd=REPO, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=280)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_extra_can_be_installed_on_every_python(
    resolved: dict[tuple[str, str], str], python: str, resolution: str
) -> None:
    text = resolved[python, resolution]
    assert not text.startswith("FAILED"), text
    chosen = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    for requirement in requirements():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(Version(chosen[name]), prereleases=True)


def test_the_lower_bounds_are_what_the_oldest_run_takes(resolved: dict[tuple[str, str], str]) -> None:
    # A bound that some other package lifts would never be tried by `make oldest`.
    chosen = dict(re.findall(r"^([\w.-]+)==(\S+)", resolved["3.11", "lowest-direct"], re.MULTILINE))
    for requirement in requirements():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        low = next(s.version for s in requirement.specifier if s.operator in (">=", "=="))
        assert Version(chosen[name]).release[:2] == (*Version(low).release, 0)[:2], name
