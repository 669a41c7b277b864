"""The help panel in Chromium: text and picture in both kinds of nodes; names in Chinese."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from comfy_host import ComfyServer

NODE = "EAM_TiledSampler"
BUILD = f"""() => {{
  app.graph.clear();
  const node = LiteGraph.createNode("{NODE}");
  node.pos = [500, 200];
  app.graph.add(node);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.selectNode(node);
  app.canvas.setDirty(true, true);
}}"""
LABELS = """() => {
  const [node] = app.graph.nodes;
  const widgets = Object.fromEntries(node.widgets.map((one) => [one.name, one.label]));
  const sockets = Object.fromEntries(node.inputs.map((one) => [one.name, one.localized_name]));
  return { title: node.title, category: node.constructor.category, widgets, sockets };
}"""
PICTURES = """() => [...document.querySelectorAll(".node-help-content img")].map((one) => [
  new URL(one.src).pathname, one.naturalWidth, one.clientWidth, one.getBoundingClientRect().top < innerHeight,
])"""


@pytest.fixture
def chinese(server: ComfyServer) -> Iterator[None]:
    requests.post(f"{server.url}/settings", json={"Comfy.Locale": "zh"}, timeout=60).raise_for_status()
    yield
    requests.post(f"{server.url}/settings", json={"Comfy.Locale": "en"}, timeout=60).raise_for_status()


def open_help(page: Any) -> Any:
    """Select the node, press the info button over it and return the panel."""
    page.evaluate(BUILD)
    page.locator("[data-testid='info-button']").first.click()
    panel = page.locator(".node-help-content")
    panel.locator("h1").wait_for()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.node-help-content img')].every((one) => one.complete)"
    )
    return panel


def check_picture(page: Any) -> None:
    ((address, natural, shown, in_sight),) = page.evaluate(PICTURES)
    assert address == f"/extensions/ComfyUI-EAM/docs/{NODE}/node.png"
    assert natural >= 400 and shown > 100 and in_sight


def test_help_panel_shows_text_and_picture(classic_page: Any) -> None:
    panel = open_help(classic_page)
    assert panel.locator("h1").inner_text() == "EAM Tiled Sampler"
    assert [one.inner_text() for one in panel.locator("h2").all()][:3] == ["Inputs", "Outputs", "Typical values"]
    assert "share of noise to start from" in panel.inner_text()
    assert panel.locator("li").count() > 15
    check_picture(classic_page)


@pytest.mark.parametrize("kind", ["classic", "nodes 2.0"])
def test_chinese_names_and_page(open_page: Any, chinese: None, kind: str) -> None:
    page = open_page(kind)
    panel = open_help(page)
    labels = page.evaluate(LABELS)
    assert labels["title"] == "EAM 分块采样器"
    assert labels["category"] == "EAM 图像修复"
    assert labels["widgets"]["fidelity"] == "保真度"
    assert labels["sockets"]["tile_positive"] == "分块正面条件"
    assert panel.locator("h1").inner_text() == "EAM 分块采样器"
    assert "噪声的种子" in panel.inner_text()
    check_picture(page)
    if kind == "nodes 2.0":
        node = page.locator("[data-node-id]").first
        assert "保真度" in node.inner_text() and "EAM 分块采样器" in node.inner_text()
