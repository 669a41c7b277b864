"""What people read about the nodes: help pages with pictures in both languages, tooltips, names, search aliases."""

import ast
import json
import re
from typing import Any

import pytest
import requests
from comfy_host import REPO, ComfyServer
from locale_files import LOCALES, english, node_inputs, our_nodes, paths, texts
from PIL import Image

LANGUAGES = ("en", "zh")
LARGEST_PICTURE = 60_000  # bytes
CHINESE = re.compile("[\u4e00-\u9fff]")
BOLD, PICTURE = re.compile(r"\*\*([^*]+)\*\*"), re.compile(r"!\[[^\]]+\]\(([^)]+)\)")


@pytest.fixture(scope="module")
def nodes(server: ComfyServer) -> dict[str, Any]:
    found = our_nodes(server.object_info())
    assert len(found) >= 16
    return found


def locale(language: str, name: str = "nodeDefs") -> dict[str, Any]:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def page_of(server: ComfyServer, node: str, path: str) -> requests.Response:
    """Fetch what the help panel of the front end fetches."""
    return requests.get(f"{server.url}/extensions/ComfyUI-EAM/docs/{node}/{path}", timeout=60)


def outputs_in(page: str) -> str:
    """Return the part of a page behind its outputs' heading."""
    return re.split(r"^## (?:Outputs|输出)$", page, flags=re.MULTILINE)[-1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_page_with_its_inputs_and_outputs(
    server: ComfyServer, nodes: dict[str, Any], language: str
) -> None:
    for name, info in nodes.items():
        answer = page_of(server, name, f"{language}.md")
        assert answer.status_code == 200, f"{name} has no page in {language}"
        page = answer.content.decode()
        title = info["display_name"] if language == "en" else locale("zh")[name]["display_name"]
        assert page.startswith(f"# {title}\n"), name
        said = set(BOLD.findall(page))
        assert not set(node_inputs(info)) - said, f"inputs without a word in {language}.md of {name}"
        told = set(BOLD.findall(outputs_in(page)))
        assert not set(info["output_name"]) - told, f"outputs without a word in {language}.md of {name}"
        problems = "## What goes wrong" if language == "en" else "## 常见问题"
        assert problems in page, name
        if language == "zh":
            prose = [
                line for line in page.splitlines() if len(line) > 40 and not line.lstrip().startswith(("`", "|", "!"))
            ]
            assert prose and all(CHINESE.search(line) for line in prose), name


@pytest.mark.parametrize("language", LANGUAGES)
def test_pictures_are_served_and_small(server: ComfyServer, nodes: dict[str, Any], language: str) -> None:
    for name in nodes:
        named = PICTURE.findall(page_of(server, name, f"{language}.md").content.decode())
        # The panel resolves paths against docs/, not against the page.
        assert named == [f"{name}/node.png"]
        answer = page_of(server, name, "node.png")
        assert answer.status_code == 200 and len(answer.content) <= LARGEST_PICTURE
        with Image.open(REPO / "web" / "docs" / name / "node.png") as picture:
            assert picture.format == "PNG" and picture.width >= 400
            assert len(picture.convert("RGB").getcolors(256) or []) > 8, f"the picture of {name} shows nothing"


def test_every_input_and_output_has_a_tooltip(nodes: dict[str, Any]) -> None:
    for name, info in nodes.items():
        assert info["description"], name
        missing = [key for key, options in node_inputs(info).items() if not options.get("tooltip")]
        assert not missing, f"{name}: {missing}"
        assert all(info["output_tooltips"] or []), f"{name}: {info['output_name']} {info['output_tooltips']}"


def test_english_texts_are_those_of_the_schemas(nodes: dict[str, Any]) -> None:
    assert locale("en") == english(nodes), "run: python tools/locale_files.py"


def test_chinese_texts_are_whole_and_chinese(nodes: dict[str, Any]) -> None:
    original, translated = texts(english(nodes)), texts(locale("zh"))
    assert paths(locale("zh")) == set(original)
    for path, text in translated.items():
        assert not set(text) & set("{}@|"), path
        if path.endswith(("tooltip", "description", "display_name")):
            assert CHINESE.search(text) and text != original[path], f"left in English: {path}"
    for node in locale("zh").values():
        names = [said["name"] for said in node["inputs"].values()]
        assert len(names) == len(set(names)), names


def test_server_gives_both_languages_to_the_page(server: ComfyServer) -> None:
    given = requests.get(f"{server.url}/i18n", timeout=60).json()
    for language in LANGUAGES:
        assert given[language]["nodeDefs"] == locale(language)
        assert given[language]["nodeCategories"]["EAM"] == locale(language, "main")["nodeCategories"]["EAM"]


def test_search_aliases_in_every_schema(nodes: dict[str, Any]) -> None:
    """Read from the source: ComfyUI 0.3.75 has no place for them."""
    counted = {}
    for file in (REPO / "nodes").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        lists = {
            target.id: statement.value
            for statement in tree.body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "schema":
                given = {keyword.arg: keyword.value for keyword in call.keywords}
                aliases = given["search_aliases"]
                aliases = lists[aliases.id] if isinstance(aliases, ast.Name) else aliases
                words = [node.value for node in ast.walk(aliases) if isinstance(node, ast.Constant)]
                assert len(words) == len({str(word).lower() for word in words}), words
                counted[ast.literal_eval(given["node_id"])] = len(words)
    assert set(counted) == set(nodes)
    assert min(counted.values()) >= 4
