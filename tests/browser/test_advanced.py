"""Advanced widgets are folded away at first, can be shown, and keep their values."""

import os
from typing import Any

MAKE = """(type) => {
  app.graph.clear();
  const node = LiteGraph.createNode(type);
  node.pos = [200, 120];
  app.graph.add(node);
  return node.id;
}"""
NODE = "app.graph.nodes[0]"
SHOWN = f"{NODE}.widgets.filter((widget) => {NODE}.isWidgetVisible(widget)).map((widget) => widget.name)"
VISIBLE = ["scale", "fidelity", "caption", "seed"]


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("EAM_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}_{page.kind.replace(' ', '_')}.png")


def test_upscale_shows_what_most_photos_need(classic_page: Any) -> None:
    page = classic_page
    page.evaluate(MAKE, "EAM_Upscale")
    page.wait_for_timeout(300)
    assert page.evaluate(SHOWN) == VISIBLE
    short = page.evaluate(f"{NODE}.size[1]")
    screenshot(page, "upscale_folded")

    page.evaluate(f"{NODE}.toggleAdvanced()")
    page.wait_for_timeout(300)
    everything = page.evaluate(f"{NODE}.widgets.map((widget) => widget.name)")
    assert len(everything) > 12
    assert page.evaluate(SHOWN) == everything
    assert page.evaluate(f"{NODE}.size[1]") > short + 200


def test_folded_values_are_saved_sent_and_loaded(classic_page: Any) -> None:
    page = classic_page
    page.evaluate(MAKE, "EAM_Upscale")
    page.evaluate(f"{NODE}.widgets.find((widget) => widget.name === 'steps').value = 7")
    saved = page.evaluate("app.graph.serialize()")
    page.evaluate("(saved) => app.loadGraphData(saved)", saved)
    page.wait_for_timeout(300)
    assert page.evaluate(f"{NODE}.widgets.find((widget) => widget.name === 'steps').value") == 7
    assert page.evaluate(SHOWN) == VISIBLE
    sent = page.evaluate("app.graphToPrompt().then((prompt) => Object.values(prompt.output)[0].inputs)")
    assert (sent["steps"], sent["sampler_name"], sent["tile_batch"]) == (7, "auto", 0)
