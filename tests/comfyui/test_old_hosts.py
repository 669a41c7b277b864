"""A ComfyUI that is too old says so in one sentence and gets no nodes; the registry is told the same version."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")

REPO = Path(__file__).resolve().parents[2]
LOWEST = runpy.run_path(str(REPO / "__init__.py"))["LOWEST_COMFYUI"]

# A stand-in that loads a pack as ComfyUI does: V1 mappings first, the entry point only where it is known.
HOST = """
import asyncio, importlib.util, json, logging, sys, traceback
import folder_paths
logging.basicConfig(stream=sys.stderr, format="LOG %(message)s", level=logging.INFO)
pack, knows_entry_point = sys.argv[1], sys.argv[2] == "True"
before = set(sys.modules)
try:
    spec = importlib.util.spec_from_file_location("custom_nodes_x_eam", pack + "/__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    imported = {name.split(".")[0] for name in set(sys.modules) - before}
    if getattr(module, "NODE_CLASS_MAPPINGS", None) is not None:
        nodes = list(module.NODE_CLASS_MAPPINGS)
    elif knows_entry_point and hasattr(module, "comfy_entrypoint"):
        nodes = asyncio.iscoroutinefunction(module.comfy_entrypoint)
    else:
        logging.warning("Skip module due to the lack of NODE_CLASS_MAPPINGS")
        nodes = None
    web = getattr(module, "WEB_DIRECTORY", None)
    print(json.dumps({"nodes": nodes, "web": web, "imported": sorted(imported)}))
except Exception:
    traceback.print_exc()
"""


def load_pack(folder: Path, version: str | None, *, node_api: bool, knows_entry_point: bool) -> tuple[Any, list[str]]:
    """Load the pack in a stand-in for a ComfyUI; return what came of it and the lines of the log."""
    (folder / "main.py").write_text(HOST)
    (folder / "folder_paths.py").touch()
    if version is not None:
        (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    if node_api:
        (folder / "comfy_api" / "latest").mkdir(parents=True)
        (folder / "comfy_api" / "latest" / "__init__.py").touch()
    command = [sys.executable, str(folder / "main.py"), str(REPO), str(knows_entry_point)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True, timeout=60)
    return json.loads(done.stdout), done.stderr.splitlines()


@pytest.mark.parametrize(
    ("version", "node_api", "knows_entry_point", "found"),
    [
        (None, False, False, "an older one without a version number"),
        ("0.3.9", False, False, "0.3.9"),
        ("0.3.40", False, False, "0.3.40"),
        ("0.3.74", True, True, "0.3.74"),
        ("0.4.0", False, True, "0.4.0 without comfy_api.latest"),
    ],
)
def test_old_hosts_get_one_sentence_and_no_nodes(
    tmp_path: Path, version: str | None, node_api: bool, knows_entry_point: bool, found: str
) -> None:
    loaded, log = load_pack(tmp_path, version, node_api=node_api, knows_entry_point=knows_entry_point)
    assert (loaded["nodes"], loaded["web"]) == ([], None)
    sentence = f"LOG EAM: expected ComfyUI {LOWEST} or newer, got {found}; update ComfyUI to get the nodes."
    assert log == [sentence]


@pytest.mark.parametrize("version", [LOWEST, "0.3.100", "0.10.0+local", "v1.0.0rc1", "nightly"])
def test_new_hosts_get_the_entry_point_and_no_word(tmp_path: Path, version: str) -> None:
    loaded, log = load_pack(tmp_path, version, node_api=True, knows_entry_point=True)
    assert (loaded["nodes"], loaded["web"], log) == (True, "./web", [])
    assert set(loaded["imported"]) <= {"custom_nodes_x_eam", "comfyui_version", "comfy_api"}


def test_pack_alone_says_nothing() -> None:
    command = [sys.executable, "-P", str(REPO / "__init__.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout + done.stderr == ""


def test_registry_is_told_what_the_door_asks_for() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    comfy = project["tool"]["comfy"]
    assert comfy["requires-comfyui"] == f">={LOWEST}"
    assert comfy["includes"] == []
    assert comfy["PublisherId"] and comfy["DisplayName"]
    assert comfy["Icon"] == "" or comfy["Icon"].startswith("https://")
    assert set(comfy) == {"PublisherId", "DisplayName", "Icon", "requires-comfyui", "includes"}
    needed = (REPO / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in needed if line.strip() and not line.startswith("#")] == []


def test_lowest_version_is_the_one_that_the_tests_run() -> None:
    from comfy_install import COMFY_CACHE

    if not COMFY_CACHE.is_dir():
        pytest.skip("the tests run another ComfyUI here")
    assert runpy.run_path(str(COMFY_CACHE / "comfyui_version.py"))["__version__"] == LOWEST


def test_icon_is_a_picture_that_the_registry_takes() -> None:
    icon = ElementTree.parse(REPO / "docs" / "images" / "icon.svg").getroot()
    assert icon.tag == "{http://www.w3.org/2000/svg}svg"
    assert (int(icon.get("width")), int(icon.get("height"))) == (400, 400), "at most 800 x 400"
    assert all("script" not in part.tag and "href" not in "".join(part.attrib) for part in icon.iter())
