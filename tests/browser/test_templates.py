"""ComfyUI's template browser: the pack's workflows with their thumbnails, opened by a click, tidy, and run."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_host import REPO, ComfyServer
from front_end import run
from PIL import Image

FOLDER = REPO / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
PACK = "ComfyUI-EAM"  # the pack's folder in ComfyUI, which names the category
CARDS = "[data-testid^='template-workflow-']"
DIALOG = "dialog[open], .p-dialog"
SIDE = 64  # of the picture that stands for ComfyUI's example
DRAWN = """(names) => names.every((name) => {
  const picture = document.querySelector(`[data-testid="template-workflow-${name}"] img`);
  return picture && picture.complete && picture.naturalWidth > 0;
})"""
# Rectangles of nodes with their title, as [type, left, top, right, bottom].
NODES = """app.graph.nodes.map((node) => {
  const [left, top, width, height] = node.getBounding();
  return [node.title, left, top, left + width, top + height];
})"""
GROUPS = """app.graph.groups.map((group) => {
  const [left, top, width, height] = group.boundingRect ?? group._bounding;
  return [group.title, left, top, left + width, top + height];
})"""
# Show a graph as large as the window allows, right of the side bar and below the tabs.
FIT = """(nodes) => {
  const [left, top] = [1, 2].map((index) => Math.min(...nodes.map((node) => node[index])));
  const [right, bottom] = [3, 4].map((index) => Math.max(...nodes.map((node) => node[index])));
  const { ds } = app.canvas;
  ds.scale = Math.min((innerWidth - 160) / (right - left), (innerHeight - 240) / (bottom - top), 1);
  [ds.offset[0], ds.offset[1]] = [100 / ds.scale - left, 150 / ds.scale - top];
  app.canvas.setDirty(true, true);
}"""


@pytest.fixture(scope="module", autouse=True)
def example(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Put a part of the bundled photo where ComfyUI has its example picture."""
    path = tmp_path_factory.mktemp("photo") / "example.png"
    Image.open(REPO / "eam_core/assets/sample_lr.png").crop((50, 40, 50 + SIDE, 40 + SIDE)).save(path)
    server.upload_image(path)


def open_templates(page: Any) -> None:
    page.evaluate("void app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK, exact=True).first.click()
    page.wait_for_selector(f"[data-testid='template-workflow-{NAMES[0]}']")


def show_all(page: Any) -> None:
    """Scroll through the cards, as their pictures are loaded when they come into sight."""
    for name in NAMES:
        page.locator(f"[data-testid='template-workflow-{name}']").scroll_into_view_if_needed()
        page.wait_for_function(DRAWN, arg=[name], timeout=20_000)


def pick(page: Any, name: str) -> None:
    """Open a workflow from the template browser."""
    open_templates(page)
    click_card(page, name)


def click_card(page: Any, name: str) -> None:
    """Click a workflow in the open template browser and wait for it."""
    page.locator(f"[data-testid='template-workflow-{name}']").click()
    note = json.dumps(note_of(name))
    page.wait_for_function(
        f"() => app.graph.nodes.some((node) => node.type === 'MarkdownNote' && node.widgets[0].value === {note})"
    )
    page.wait_for_timeout(500)


def note_of(name: str) -> str:
    (note,) = (node for node in load(name)["nodes"] if node["type"] == "MarkdownNote")
    return note["widgets_values"][0]


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def keep(page: Any, name: str) -> None:
    """Leave a screenshot for the docs where they are made."""
    if folder := os.environ.get("EAM_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def overlapping(rectangles: list[list[Any]]) -> list[tuple[str, str]]:
    found = []
    for number, (name, left, top, right, bottom) in enumerate(rectangles):
        for other, left2, top2, right2, bottom2 in rectangles[:number]:
            if left < right2 and left2 < right and top < bottom2 and top2 < bottom:
                found.append((other, name))
    return found


def test_the_category_has_every_workflow_with_its_picture(classic_page: Any) -> None:
    classic_page.set_viewport_size({"width": 1500, "height": 1500})
    open_templates(classic_page)
    cards = classic_page.locator(CARDS)
    shown = {card.get_attribute("data-testid").removeprefix("template-workflow-") for card in cards.all()}
    show_all(classic_page)
    shown |= {card.get_attribute("data-testid").removeprefix("template-workflow-") for card in cards.all()}
    assert shown == set(NAMES)
    cards.first.scroll_into_view_if_needed()
    classic_page.wait_for_timeout(300)
    keep(classic_page, "templates")
    click_card(classic_page, "eam_folder")
    assert classic_page.locator(DIALOG).count() == 0


@pytest.mark.parametrize("name", NAMES)
def test_workflow_opens_whole_and_tidy(classic_page: Any, name: str) -> None:
    """From its file, as a drop on the page does: all nodes, links and values, nothing over anything else."""
    workflow = load(name)
    classic_page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    classic_page.wait_for_timeout(400)
    found = classic_page.evaluate("app.graph.serialize()")
    unknown = "app.graph.nodes.filter((node) => !LiteGraph.registered_node_types[node.type]).map((node) => node.type)"
    assert classic_page.evaluate(unknown) == []
    assert classic_page.locator(DIALOG).count() == 0
    expected = {node["id"]: node for node in workflow["nodes"]}
    assert {node["id"]: node["type"] for node in found["nodes"]} == {
        key: node["type"] for key, node in expected.items()
    }
    for node in found["nodes"]:
        assert node.get("widgets_values", []) == expected[node["id"]]["widgets_values"], node["type"]
        assert [each["name"] for each in node["inputs"]] == [each["name"] for each in expected[node["id"]]["inputs"]]
    assert sorted(found["links"]) == sorted(workflow["links"])
    nodes, groups = classic_page.evaluate(NODES), classic_page.evaluate(GROUPS)
    assert overlapping(nodes) == [] and overlapping(groups) == []
    # Each group holds its nodes whole, however large the page makes them.
    for title, left, top, right, bottom in nodes:
        inside = any(x <= left and y <= top and right <= x2 and bottom <= y2 for _, x, y, x2, y2 in groups)
        assert inside or title == "Read me", title


@pytest.mark.parametrize("kind", ["classic", "nodes 2.0"])
def test_quick_start_runs_from_the_template_browser(kind: str, classic_page: Any, open_page: Any) -> None:
    page = classic_page if kind == "classic" else open_page(kind)
    page.set_viewport_size({"width": 2000, "height": 1000})
    pick(page, "eam_quick_start")
    sent = page.evaluate("app.graphToPrompt().then((prompt) => prompt.output)")
    assert {node["class_type"] for node in sent.values()} >= {"LoadImage", "EAM_Upscale", "EAM_Compare", "EAM_Report"}
    run(page, 120)
    page.wait_for_function("() => document.querySelector('.eam-compare-zoom')?.textContent.includes('%')")
    assert overlapping(page.evaluate(NODES)) == []
    page.evaluate(FIT, page.evaluate(NODES))
    page.wait_for_timeout(1500)
    keep(page, f"quick_start_{kind.replace(' ', '_')}")
    box = page.locator(".eam-compare-canvas").bounding_box()
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")).astype(float)
    middle = shot[shot.shape[0] // 4 : -shot.shape[0] // 4, shot.shape[1] // 3 : -shot.shape[1] // 3]
    assert middle.std() > 15  # the photo, not the empty stage
    sizes = page.locator(".eam-compare-tag").all_text_contents()
    assert any(f"{SIDE} × {SIDE}" in text for text in sizes), sizes
    assert any(f"{4 * SIDE} × {4 * SIDE}" in text for text in sizes), sizes


def test_workflow_of_an_older_version_opens_and_is_sent_whole(server: ComfyServer, classic_page: Any) -> None:
    old = json.loads((REPO / "tests/comfyui/data/eam_upscale_0_5_0.json").read_text(encoding="utf-8"))
    classic_page.evaluate("(workflow) => app.loadGraphData(workflow)", old)
    classic_page.wait_for_timeout(400)
    sent = classic_page.evaluate("app.graphToPrompt().then((prompt) => prompt.output)")
    info = server.object_info()
    for node in sent.values():
        assert set(node["inputs"]) >= set(info[node["class_type"]]["input"]["required"]), node["class_type"]
    (compare,) = (node for node in sent.values() if node["class_type"] == "EAM_Compare")
    assert compare["inputs"]["before_label"] == compare["inputs"]["after_label"] == ""
    (sampler,) = (node for node in sent.values() if node["class_type"] == "EAM_TiledSampler")
    assert (sampler["inputs"]["start_sigma"], sampler["inputs"]["tile_strength"]) == (0.5, 0.5)
