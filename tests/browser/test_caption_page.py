"""EAM Subject Caption as people see it: in Chromium, on ComfyUI's own page, with classic nodes and with Nodes 2.0."""

import os
from typing import Any

import pytest
from caption_endpoint import StandInEndpoint
from comfy_host import ComfyServer
from front_end import run, settle
from PIL import Image

TEXT = "A red boat lies on the beach."
BUILD = """([picture, url]) => {
  app.graph.clear();
  const add = (type, x, y) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  };
  const [image, loader] = [add("LoadImage", 80, 120), add("EAM_LoadCaptioner", 80, 520)];
  const [caption, text] = [add("EAM_SubjectCaption", 420, 100), add("PreviewAny", 900, 120)];
  image.widgets[0].value = picture;
  loader.widgets[0].value = url;
  loader.widgets[1].value = "stand-in";
  image.connect(0, caption, "image");
  loader.connect(0, caption, "captioner");
  caption.connect(0, text, 0);
  caption.setSize([420, 640]);
}"""
FIND = "app.graph.nodes.find((node) => node.comfyClass === 'EAM_SubjectCaption')"
BUTTON = f"""() => {{
  const node = {FIND};
  const button = node.widgets.find((widget) => widget.type === "button");
  const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + button.y + 10];
  const box = app.canvas.canvas.getBoundingClientRect();
  const {{ scale, offset }} = app.canvas.ds;
  return [0, 1].map((i) => (at[i] + offset[i]) * scale + [box.left, box.top][i]);
}}"""


@pytest.fixture(scope="module")
def photo(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photo") / "page.png"
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(path)
    return server.upload_image(path)


def value(page: Any, name: str) -> str:
    return page.evaluate(f"(name) => {FIND}.widgets.find((widget) => widget.name === name).value", name)


def seen(page: Any, name: str) -> Any:
    """Return the field of the node as it stands on the page."""
    if page.kind == "classic":
        return page.locator("textarea.comfy-multiline-input").nth(["caption", "used caption"].index(name))
    return page.locator(f"textarea[aria-label='{name}']")


def test_shown_caption_is_edited_run_saved_and_loaded(server: ComfyServer, page: Any, photo: str) -> None:
    with StandInEndpoint(TEXT) as endpoint:
        page.evaluate(BUILD, [photo, endpoint.url])
        page.wait_for_timeout(500)
        assert value(page, "caption") == value(page, "used caption") == ""
        run(page)
        assert len(endpoint.asked) == 1
        assert value(page, "caption") == ""
        assert seen(page, "used caption").input_value() == TEXT
        assert not seen(page, "used caption").is_editable()

        if page.kind == "classic":
            page.mouse.click(*page.evaluate(BUTTON))
        else:
            page.get_by_role("button", name="Edit this caption").click()
        assert value(page, "caption") == TEXT
        assert seen(page, "caption").input_value() == TEXT
        seen(page, "caption").fill("A blue boat.")
        assert value(page, "caption") == "A blue boat."
        if folder := os.environ.get("EAM_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/caption_node_{page.kind.replace(' ', '_')}.png")
        run(page)
        assert len(endpoint.asked) == 1, "a typed caption asked the model"
        assert seen(page, "used caption").input_value() == "A blue boat."

    saved = page.evaluate("app.graph.serialize()")
    (node,) = [node for node in saved["nodes"] if node["type"] == "EAM_SubjectCaption"]
    assert node["widgets_values"] == ["A blue boat.", "sa", "", 512, 0, False, 4, 0, 0]
    sent = page.evaluate("app.graphToPrompt().then((prompt) => prompt.output)")
    (inputs,) = [node["inputs"] for node in sent.values() if node["class_type"] == "EAM_SubjectCaption"]
    known = server.object_info()["EAM_SubjectCaption"]["input"]
    assert set(inputs) == set(known["required"]) | set(known["optional"])

    page.reload()
    settle(page)
    page.evaluate("(saved) => app.loadGraphData(saved)", saved)
    page.wait_for_timeout(500)
    assert value(page, "caption") == "A blue boat."
    assert seen(page, "used caption").input_value() == "A blue boat."
