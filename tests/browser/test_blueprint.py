"""EAM Upscale on ComfyUI's page: as one node, and as the subgraph blueprint that opens into the expert graph."""

import io
import re
from typing import Any

import numpy as np
import pytest
import requests
from comfy_host import ComfyServer
from front_end import run
from PIL import Image

SETTINGS = {"scale": 2.0, "fidelity": 0.5, "caption": "a beach", "seed": 7}
AROUND = """([picture, title]) => {
  const restored = app.graph.nodes.find((node) => node.title === title);
  restored.pos = [500, 150];
  const [image, save] = ["LoadImage", "PreviewImage"].map((kind) => LiteGraph.createNode(kind));
  for (const [node, left] of [[image, 100], [save, 950]]) {
    node.pos = [left, 150];
    app.graph.add(node);
  }
  image.widgets[0].value = picture;
  image.connect(0, restored, "image");
  restored.connect(0, save, "images");
}"""
SET = """(values) => {
  const node = app.graph.nodes.find((node) => node.title === "EAM Upscale");
  for (const [name, value] of Object.entries(values)) node.widgets.find((widget) => widget.name === name).value = value;
}"""
INSIDE = ["EAM_LoadModel", "CLIPTextEncode", "CLIPTextEncode", "EAM_ApplyControl", "EAM_TiledSampler"]
INSIDE += ["VAEDecode", "EAM_ColorFix"]


@pytest.fixture(scope="module")
def photo(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photo") / "blueprint.png"
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return server.upload_image(path)


def insert(page: Any, *, blueprint: bool) -> None:
    """Choose EAM Upscale from the page's search: the blueprint or the node."""
    page.evaluate("app.graph.clear()")
    page.mouse.dblclick(700, 450)
    page.wait_for_timeout(800)
    page.keyboard.type("EAM Upscale")
    found = page.get_by_role("option").filter(has_text=re.compile("^EAM.Upscale"))
    kind = {"has_text" if blueprint else "has_not_text": "Subgraph Blueprints"}
    found.filter(**kind).click()
    page.wait_for_function("app.graph.nodes.length === 1")


def picture(page: Any, server: ComfyServer) -> np.ndarray:
    """Run the workflow on the page, with nothing in ComfyUI's cache, and return the 8-bit levels of its result."""
    requests.post(f"{server.url}/free", json={"free_memory": True}, timeout=60).raise_for_status()
    page.evaluate("window.shown = []; app.api.addEventListener('executed', ({ detail }) => window.shown.push(detail))")
    run(page, seconds=120)
    (found,) = [file for done in page.evaluate("window.shown") for file in (done["output"] or {}).get("images", [])]
    return np.asarray(Image.open(io.BytesIO(server.fetch(found))).convert("RGB"))


@pytest.fixture(scope="module")
def expected(server: ComfyServer, photo: str) -> np.ndarray:
    """The picture of EAM_Upscale with the same settings."""
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "2": {"class_type": "EAM_Upscale", "inputs": {"image": ["1", 0], **SETTINGS}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    (found,) = server.run(prompt)["3"]["images"]
    return np.asarray(Image.open(io.BytesIO(server.fetch(found))).convert("RGB"))


def test_blueprint_inserts_opens_and_makes_the_same_picture(
    server: ComfyServer, page: Any, photo: str, expected: np.ndarray
) -> None:
    listed = requests.get(f"{server.url}/global_subgraphs", timeout=60).json().values()
    assert [(entry["name"], entry["info"]["node_pack"]) for entry in listed] == [
        ("EAM Upscale", "custom_nodes.ComfyUI-EAM")
    ]
    insert(page, blueprint=True)
    page.evaluate(AROUND, [photo, "EAM Upscale"])
    assert page.evaluate("app.graph.nodes[0].isSubgraphNode()")
    assert page.evaluate("app.graph.nodes[0].widgets.map((widget) => widget.name)") == list(SETTINGS)
    page.evaluate(SET, SETTINGS)
    result = picture(page, server)
    assert result.shape == (80, 96, 3)
    np.testing.assert_array_equal(result, expected)

    page.evaluate("app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])")
    page.wait_for_timeout(500)
    inside = page.evaluate("app.canvas.graph.nodes.map((node) => [node.type, node.has_errors ?? false])")
    assert sorted(kind for kind, _ in inside) == sorted(INSIDE)
    assert not any(broken for _, broken in inside)


def test_one_node_shows_five_inputs_and_how_it_went(
    server: ComfyServer, page: Any, photo: str, expected: np.ndarray
) -> None:
    insert(page, blueprint=False)
    page.evaluate(AROUND, [photo, "EAM Upscale"])
    page.evaluate(SET, SETTINGS)
    widgets = page.evaluate("app.graph.nodes[0].widgets.map((widget) => [widget.name, !!widget.options?.advanced])")
    assert [name for name, folded in widgets if not folded] == list(SETTINGS)
    assert len(widgets) == 4 + 12
    before = page.evaluate("app.graph.serialize().nodes.find((node) => node.type === 'EAM_Upscale').widgets_values")
    np.testing.assert_array_equal(picture(page, server), expected)
    # Text of the sampler, which is not on the page itself: its place is this node.
    told = page.evaluate("app.graph.nodes[0].widgets.map((widget) => String(widget.value))")
    assert any(re.fullmatch(r"1 step in \d+ s", text) for text in told), told
    after = page.evaluate("app.graph.serialize().nodes.find((node) => node.type === 'EAM_Upscale').widgets_values")
    assert after[: len(before)] == before
    sent = page.evaluate("app.graphToPrompt().then((prompt) => prompt.output)")
    (inputs,) = [node["inputs"] for node in sent.values() if node["class_type"] == "EAM_Upscale"]
    assert set(inputs) == {"image", *(name for name, _ in widgets)}
