"""Write subgraphs/EAM Upscale.json: python tools/blueprint.py, once a node in it has changed its inputs.

ComfyUI's own page makes the subgraph, in Chromium, so that the file is what "Publish subgraph" would save.
"""

import json
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import requests
from comfy_host import REPO, ComfyServer, HostError

TARGET = REPO / "subgraphs" / "EAM Upscale.json"
DESCRIPTION = (
    "Restores and enlarges a photo: the expert graph of EAM Upscale, to open and change. Choose another model and its "
    "settings inside."
)
READY = "() => !!(window.app?.extensionManager && window.LiteGraph?.registered_node_types?.EAM_TiledSampler)"
# name: (kind, title, left, top, width, height, {input: (node, output slot)})
NODES: dict[str, tuple[str, str, int, int, int, int, dict[str, tuple[str, int]]]] = {
    "load": ("EAM_LoadModel", "Model and control", 0, 0, 340, 150, {}),
    "positive": ("CLIPTextEncode", "Caption", 400, 0, 360, 160, {"clip": ("load", 1)}),
    "negative": ("CLIPTextEncode", "Negative prompt", 400, 220, 360, 160, {"clip": ("load", 1)}),
    "control": (
        "EAM_ApplyControl",
        "Control by the photo",
        820,
        0,
        320,
        290,
        {
            "model": ("load", 0),
            "positive": ("positive", 0),
            "negative": ("negative", 0),
            "vae": ("load", 2),
            "control": ("load", 3),
        },
    ),
    "sampler": (
        "EAM_TiledSampler",
        "Restore in tiles",
        1200,
        0,
        320,
        440,
        {"model": ("control", 0), "positive": ("control", 1), "negative": ("control", 2), "latent": ("control", 3)},
    ),
    "decode": ("VAEDecode", "Decode", 1580, 0, 240, 60, {"samples": ("sampler", 0), "vae": ("load", 2)}),
    "colors": ("EAM_ColorFix", "Colors of the photo", 1580, 130, 300, 110, {"image": ("decode", 0)}),
}
# The subgraph's inputs, and where each of them leads.
INPUTS = {
    "image": ("IMAGE", [("control", "image"), ("colors", "reference")]),
    "scale": ("FLOAT", [("control", "scale")]),
    "fidelity": ("FLOAT", [("sampler", "fidelity")]),
    "caption": ("STRING", [("positive", "text")]),
    "seed": ("INT", [("sampler", "seed")]),
}
BUILD = """([nodes, inputs, title]) => {
  app.graph.clear();
  const made = {};
  for (const [name, [kind, title, left, top, width, height]] of Object.entries(nodes)) {
    const node = LiteGraph.createNode(kind);
    Object.assign(node, { title, pos: [left, top] });
    app.graph.add(node);
    node.setSize([width, height]);
    made[name] = node;
  }
  for (const [name, parts] of Object.entries(nodes))
    for (const [input, [from, slot]] of Object.entries(parts[6])) made[from].connect(slot, made[name], input);
  for (const widget of made.sampler.widgets) if (widget.name === "control_after_generate") widget.value = "fixed";
  const { subgraph, node } = app.graph.convertToSubgraph(new Set(Object.values(made)));
  for (const [name, [type, targets]] of Object.entries(inputs)) {
    const input = subgraph.addInput(name, type);
    for (const [target, slot] of targets) {
      const found = subgraph.nodes.find((candidate) => candidate.title === nodes[target][1]);
      input.connect(found.inputs.find((socket) => socket.name === slot), found);
    }
  }
  const last = subgraph.nodes.find((candidate) => candidate.title === nodes.colors[1]);
  subgraph.addOutput("IMAGE", "IMAGE").connect(last.outputs[0], last);
  subgraph.name = node.title = title;
  subgraph.inputNode.pos = [-220, 0];
  subgraph.outputNode.pos = [1960, 130];
  node.pos = [100, 100];
  // The page adds widgets of its own choice beside those that the inputs stand for.
  node.properties.proxyWidgets = node.properties.proxyWidgets.filter(([owner]) => String(owner) === "-1");
  const { nodes: outer, subgraphs } = app.canvas._serializeItems([node]);
  return JSON.stringify({ node: outer[0], subgraphs });
}"""


def make(server: ComfyServer, chromium: str) -> dict[str, Any]:
    """Let the page build the subgraph and return it as it would be published."""
    from playwright.sync_api import sync_playwright

    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False}
    requests.post(f"{server.url}/settings", json=settings, timeout=60).raise_for_status()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(server.url)
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(2000)
        built = json.loads(page.evaluate(BUILD, [NODES, INPUTS, TARGET.stem]))
        browser.close()
    node = built["node"] | {"id": 1, "order": 0, "pos": [100, 100], "size": [340, 240]}
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": built["subgraphs"]},
        "extra": {"BlueprintDescription": DESCRIPTION},
    }


def stable(blueprint: dict[str, Any]) -> dict[str, Any]:
    """Give the parts names that stay the same whenever the file is written."""
    text = json.dumps(blueprint)
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    own = [subgraph["id"], *(slot["id"] for slot in (*subgraph["inputs"], *subgraph["outputs"]))]
    for number, old in enumerate(own):
        text = text.replace(old, str(uuid.uuid5(uuid.NAMESPACE_URL, f"EAM Upscale {number}")))
    return json.loads(text)


def main() -> None:
    """Write the file."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise HostError("expected Chromium on this machine, found none; install it or name it in CHROMIUM")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        blueprint = stable(make(server, chromium))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(blueprint, indent=2) + "\n", encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    try:
        main()
    except HostError as error:
        sys.exit(str(error))
