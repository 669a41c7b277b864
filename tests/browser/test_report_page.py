"""EAM Report on ComfyUI's page: the text of the run stands in the node and survives saving and loading."""

from typing import Any

from front_end import run

FIND = "app.graph.nodes.find((node) => node.comfyClass === 'EAM_Report')"
BUILD = """() => {
  const { graph } = app;
  graph.clear();
  const add = (type, values, at) => {
    const node = LiteGraph.createNode(type);
    node.pos = at;
    for (const [name, value] of Object.entries(values))
      node.widgets.find((widget) => widget.name === name).value = value;
    graph.add(node);
    return node;
  };
  const low = add("EmptyImage", { width: 32, height: 32, color: 0xffffff }, [0, 0]);
  const high = add("EmptyImage", { width: 64, height: 64, color: 0 }, [0, 250]);
  const report = add("EAM_Report", {}, [400, 0]);
  high.connect(0, report, 0);
  low.connect(0, report, 1);
  app.canvas.ds.offset = [20, 60];
  app.canvas.ds.scale = 1;
}"""
RELOAD = "async () => { const saved = app.graph.serialize(); app.graph.clear(); await app.loadGraphData(saved); }"


def shown(page: Any) -> str:
    """Return the text that stands on the page in the node."""
    fields = page.locator("textarea")
    texts = [fields.nth(index).input_value() for index in range(fields.count())]
    return next((text for text in texts if "pixels from" in text), "")


def test_text_of_the_run_stands_in_the_node(page: Any) -> None:
    page.evaluate(BUILD)
    page.wait_for_timeout(500)
    assert shown(page) == ""
    run(page)
    text = shown(page)
    assert text.startswith("Warning: the picture is black, its original is not")
    assert "64 x 64 pixels from 32 x 32, scale 2." in text
    assert "The run took" in text
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    (inputs,) = [node["inputs"] for node in sent.values() if node["class_type"] == "EAM_Report"]
    assert set(inputs) == {"restored", "original", "tile", "overlap"}, "the field is no input"
    page.evaluate(RELOAD)
    page.wait_for_timeout(500)
    assert shown(page) == text
    assert page.evaluate(f"{FIND}.widgets.map((widget) => widget.name)") == ["tile", "overlap", "report"]
    saved = page.evaluate(f"{FIND}.serialize().widgets_values")
    assert saved[:2] == [0, 0] and all(text != value for value in saved)
