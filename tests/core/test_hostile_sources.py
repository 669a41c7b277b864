"""What no source may do: make markup of text, open pictures of any format, add routes, run what it reads."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PYTHON = [path for folder in ("eam_core", "nodes", "train") for path in sorted((REPO / folder).rglob("*.py"))]
SCRIPTS = sorted((REPO / "web").rglob("*.js"))


def found(paths: list[Path], pattern: str) -> list[str]:
    """List the lines that match, without those that are comments."""
    rule = re.compile(pattern)
    lines = ((path, line) for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return [f"{path.name}: {line.strip()}" for path, line in lines if rule.search(line.split("#")[0])]


def test_sources_are_found() -> None:
    assert len(PYTHON) > 100 and len(SCRIPTS) > 10


def test_pages_set_text_and_never_markup() -> None:
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    assert not found(SCRIPTS, markup)
    assert not found(SCRIPTS, r"\beval\(|new Function\(|setTimeout\(\s*[\"'`]|javascript:|dangerouslySet|v-html")


@pytest.mark.parametrize("call", [r"\bImage\.open\("])
def test_pictures_are_opened_by_a_list_of_formats(call: str) -> None:
    assert found(PYTHON, call)
    assert not [line for line in found(PYTHON, call) if "formats=" not in line]


def test_the_pack_adds_one_route() -> None:
    routes = found(PYTHON, r"\.routes\.|add_routes|add_route\(|add_static|router\.")
    assert routes == ["kept_pictures.py: @running.routes.post(ROUTE)"]


def test_nothing_is_executed_or_unpickled() -> None:
    assert not found(PYTHON, r"\bpickle\.(?:load|Unpickler)|joblib|\byaml\.(?:unsafe_)?load\(|marshal")
    # Weights inside packages of metrics, which whoever evaluates has installed.
    assert all("metrics.py" in line and "weights_only=True" in line for line in found(PYTHON, r"torch\.load\("))
    assert not found(PYTHON, r"(?<![.\w])(?:eval|exec)\(|os\.system\(|shell=True|trust_remote_code=True")
