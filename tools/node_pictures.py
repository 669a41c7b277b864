"""Take the pictures of the help pages: each node as ComfyUI's page shows it, some after a run on the bundled photo."""

import argparse
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests
from comfy_host import REPO, ComfyServer
from node_scenes import SCENES, Scene, pictures_for
from PIL import Image

DOCS = REPO / "web" / "docs"
LARGEST = 60_000  # bytes of one picture
MARGIN = 10  # page pixels around the nodes
READY = "() => !!(window.app?.extensionManager && window.LiteGraph?.registered_node_types?.EAM_LoadModel)"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.NodeBadge.NodeIdBadgeMode": "None",
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
}
# A menu or note that floats over the canvas may overlap a node; fields of nodes are part of the picture.
CLEAN = ".side-tool-bar-container, .comfyui-menu, .p-toast, .graph-canvas-panel { visibility: hidden !important; }"
BUILD = """async (scene) => {
  app.graph.clear();
  app.canvas.background_image = "";
  const made = {};
  for (const [name, given] of Object.entries(scene.nodes)) {
    const node = LiteGraph.createNode(given.type);
    node.pos = given.at;
    app.graph.add(node);
    for (const [key, value] of Object.entries(given.values ?? {})) {
      const widget = node.widgets.find((one) => one.name === key);
      widget.value = value;
      widget.callback?.(value);
    }
    if (given.size) node.setSize([given.size[0], given.size[1] || node.computeSize()[1]]);
    made[name] = node;
  }
  for (const [from, output, to, input] of scene.links) made[from].connect(output, made[to], input);
  // Links to nodes out of sight would only be stubs.
  app.canvas.links_render_mode = scene.shown.length > 1 ? LiteGraph.SPLINE_LINK : LiteGraph.HIDDEN_LINK;
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [300, 200];
  app.canvas.deselectAll?.();
  app.canvas.setDirty(true, true);
  window.made = made;
}"""
RUN = """async () => {
  const ended = new Promise((done, fail) => {
    app.api.addEventListener("execution_success", done, { once: true });
    app.api.addEventListener("execution_error", (event) => fail(event.detail.exception_message), { once: true });
  });
  await app.queuePrompt(0);
  await Promise.race([ended, new Promise((_, fail) => setTimeout(() => fail("no end"), 120000))]);
}"""
BOX = """(names) => {
  const boxes = names.map((name) => made[name].getBounding());
  const left = Math.min(...boxes.map((box) => box[0]));
  const top = Math.min(...boxes.map((box) => box[1]));
  const right = Math.max(...boxes.map((box) => box[0] + box[2]));
  const bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const { offset } = app.canvas.ds;
  return [left + offset[0] + canvas.left, top + offset[1] + canvas.top, right - left, bottom - top];
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nodes", nargs="*", help="ids of nodes; all without")
    wanted = parser.parse_args().nodes or list(SCENES)
    unknown = sorted(set(wanted) - set(SCENES))
    if unknown:
        print(f"node_pictures: expected ids among {', '.join(SCENES)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server, sync_playwright() as playwright:
        requests.post(f"{server.url}/settings", json=SETTINGS, timeout=60).raise_for_status()
        for path in pictures_for(Path(folder) / "pictures"):
            server.upload_image(path)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in wanted:
            target = DOCS / name / "node.png"
            size = save(take(browser, server.url, SCENES[name]), target)
            print(f"{target.relative_to(REPO)}: {size[0]} x {size[1]}, {target.stat().st_size} bytes", flush=True)
        browser.close()
    return 0


def take(browser: Any, url: str, scene: Scene) -> bytes:
    """Show a scene on a fresh page, run it where it says so, and return the PNG of its nodes."""
    context = browser.new_context(
        viewport={"width": 1700, "height": 1400}, device_scale_factor=scene.pixels, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_function(READY, timeout=60_000)
    page.wait_for_timeout(1000)  # the page still loads its default workflow
    page.add_style_tag(content=CLEAN)
    page.evaluate(BUILD, scene.as_dict())
    page.wait_for_timeout(800)
    if scene.run:
        page.evaluate(RUN)
        page.wait_for_timeout(1500)
    for script in scene.after:
        page.evaluate(script)
        page.wait_for_timeout(500)
    page.mouse.move(1690, 1390)
    left, top, width, height = page.evaluate(BOX, scene.shown)
    clip = {"x": left - MARGIN, "y": top - MARGIN, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN}
    png = page.screenshot(clip=clip, animations="disabled")
    context.close()
    return png


def save(png: bytes, target: Path) -> tuple[int, int]:
    """Write a screenshot with as many palette colours as keep it small; return its size.

    Raises:
        ValueError: even a few colours leave it too large.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    target.parent.mkdir(parents=True, exist_ok=True)
    for colors in (256, 192, 128, 96, 64, 48, 32):
        reduced = picture.quantize(colors, method=Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
        content = io.BytesIO()
        reduced.save(content, "PNG", optimize=True)
        if content.tell() <= LARGEST:
            target.write_bytes(content.getvalue())
            return picture.size
    raise ValueError(f"expected {target} under {LARGEST} bytes, got {content.tell()}; take it with fewer pixels")


if __name__ == "__main__":
    sys.exit(main())
