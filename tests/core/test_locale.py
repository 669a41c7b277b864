"""Any language and encoding of the system: nothing depends on how the machine writes text."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eam_core.images import save_image

REPO = Path(__file__).resolve().parents[2]
CODE = [
    path
    for place in ("__init__.py", "eam_core", "nodes", "train", "tools")
    for path in ([REPO / place] if place.endswith(".py") else sorted((REPO / place).rglob("*.py")))
]
TEXT_METHODS = {"read_text": 0, "write_text": 1}  # how many positional arguments come before the encoding
# One in western Europe's encoding, two that are not.
NAMES = ["Grüße – naïve.png", "写真.png", "фото.png"]


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def leaves_encoding_open(call: ast.Call) -> bool:
    """Tell whether a call reads or writes text in whatever encoding the system has."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in TEXT_METHODS and isinstance(function, ast.Attribute):
        return "encoding" not in given and len(call.args) <= TEXT_METHODS[name]
    if name in ("run", "Popen", "check_output", "check_call"):
        return bool({"text", "universal_newlines"} & given.keys()) and "encoding" not in given
    if name not in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "TextIOWrapper"):
        return False
    owner = getattr(getattr(function, "value", None), "id", "")
    if owner in ("Image", "tarfile") or (owner, name) == ("os", "open"):
        return False
    if name == "TextIOWrapper":
        return "encoding" not in given
    method = isinstance(function, ast.Attribute) and owner not in ("io", "tempfile", "os")
    first = 0 if method or name.endswith("TemporaryFile") else 1
    mode = given.get("mode", call.args[first] if len(call.args) > first else None)
    default = "w+b" if name.endswith("TemporaryFile") else "r"
    text = ast.literal_eval(mode) if isinstance(mode, ast.Constant) else default
    return "b" not in text and "encoding" not in given


def test_every_text_file_names_its_encoding() -> None:
    places = [(path, call.lineno) for path in CODE for call in calls(path) if leaves_encoding_open(call)]
    assert [f"{path.relative_to(REPO)}:{line}" for path, line in places] == []


@pytest.mark.parametrize(
    ("line", "left_open"),
    [
        ("path.read_text()", True),
        ("path.read_text(errors='replace')", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text, encoding='utf-8')", False),
        ("path.write_text(text)", True),
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open('a')", True),
        ("path.open('xb')", False),
        ("open(path, 'w', encoding='utf-8')", False),
        ("Image.open(path)", False),
        ("subprocess.run(command, text=True)", True),
        ("tempfile.NamedTemporaryFile()", False),
        ("tempfile.NamedTemporaryFile('w')", True),
    ],
)
def test_the_search_for_them_finds_them(line: str, left_open: bool) -> None:
    assert leaves_encoding_open(ast.parse(line, mode="eval").body) == left_open


def test_no_number_is_written_as_the_country_does() -> None:
    words = ("import locale", "from locale", "setlocale", ":n}", "strftime(")
    assert [(path.name, word) for path in CODE for word in words if word in path.read_text(encoding="utf-8")] == []


def command(language: str, encoding: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line on a machine with a language, whose terminal has an encoding."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    kept |= {"LC_ALL": language, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    python = [sys.executable, "-P", "-m", "eam_core"]
    return subprocess.run([*python, *arguments], env=kept, capture_output=True, timeout=120)


# In C, Python takes names of files for bytes; a Windows has its country's encoding in pipes.
@pytest.mark.parametrize(("language", "encoding"), [("C", "ascii"), ("C.UTF-8", "cp1252")])
def test_pictures_of_any_name_are_restored_and_told_of(tmp_path: Path, language: str, encoding: str) -> None:
    photos, results = tmp_path / "Fotos ñ", tmp_path / "out"
    photos.mkdir()
    for name in NAMES:
        save_image(torch.rand(1, 3, 16, 16), photos / name)
    (photos / "kaputt ☠.png").write_bytes(b"no picture")
    done = command(language, encoding, "upscale", str(photos), str(results), "--scale", "2")
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr
    assert sorted(path.name for path in results.iterdir()) == sorted(NAMES)
    told, complaint = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert told.count("32 x 32 in ") == len(NAMES)
    if encoding == "cp1252":
        assert "Grüße – naïve.png" in told and "\\u5199\\u771f.png" in told and "kaputt \\u2620.png" in complaint
    else:
        assert "Gr\\udcc3\\udcbc" in told and "kaputt \\udce2" in complaint


def test_every_help_can_be_shown_in_ascii() -> None:
    for words in ([], ["upscale"], ["batch"], ["caption"], ["convert-embedding"]):
        done = command("C", "ascii", *words, "--help")
        assert done.returncode == 0 and not done.stderr, done.stderr
