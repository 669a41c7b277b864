"""What the folder nodes show in the browser: counts and the saved picture; names of files are shown, never run."""

import sys
from pathlib import Path
from typing import Any

from comfy_host import ComfyServer

sys.path.append(str(Path(__file__).resolve().parents[1] / "comfyui"))

from folders import make_pictures, wait_idle

HOSTILE = "2 <img src=x onerror=window.ran=1>.png"
BUILD = """(name) => {
  const graph = window.app.graph;
  graph.clear();
  const [load, save] = ["EAM_LoadFolder", "EAM_SaveFolder"].map((type) => window.LiteGraph.createNode(type));
  graph.add(load);
  graph.add(save);
  save.pos = [450, 0];
  for (const number of [0, 1]) load.widgets[number].value = name;
  load.connect(0, save, 0);
  load.connect(1, save, 1);
  window.both = [load, save];
}"""
SHOWN = "() => window.both.map((node) => node.widgets.find(({ name }) => name === '$$node-text-preview')?.value)"


def test_progress_and_picture(page: Any, server: ComfyServer) -> None:
    name = page.kind.replace(" ", "_").replace(".", "")
    make_pictures(server.work_dir / "input" / name, "1.png", HOSTILE)
    page.evaluate(BUILD, name)
    page.wait_for_timeout(500)
    page.evaluate("() => window.app.queuePrompt(0)")
    wait_idle(server)
    page.wait_for_function("() => window.both[0].widgets.some(({ value }) => String(value).startsWith('Finished'))")
    page.wait_for_timeout(500)
    load, save = page.evaluate(SHOWN)
    assert load == "Finished: 2 of 2."
    assert save.startswith("2 of 2: 2 &lt;img")
    assert page.get_by_text(f"2 of 2: {HOSTILE}").count() == 1
    assert page.evaluate("() => window.ran") is None
    assert page.evaluate("() => window.app.nodeOutputs[window.both[1].id].images[0].filename") == HOSTILE
