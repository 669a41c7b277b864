"""EAM Compare on ComfyUI's page: build a graph, use it as a hand would, read what is on the screen."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from comfy_host import ComfyServer
from front_end import run
from PIL import Image

FIND = "app.graph.nodes.find((node) => node.comfyClass === 'EAM_Compare')"
BUILD = """([before, after, labels]) => {
  app.graph.clear();
  const add = (type, x, y) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  };
  const compare = add("EAM_Compare", 620, 140);
  // A list of names is a batch.
  const side = (names, y) => names.map((name, number) => {
    const image = add("LoadImage", 80 + 40 * number, y + 40 * number);
    image.widgets[0].value = name;
    return image;
  }).reduce((batch, image) => {
    const both = add("ImageBatch", 400, y);
    batch.connect(0, both, 0);
    image.connect(0, both, 1);
    return both;
  });
  side(before, 120).connect(0, compare, 0);
  side(after, 480).connect(0, compare, 1);
  labels.forEach((label, number) => { compare.widgets[number].value = label; });
  compare.setSize([460, 560]);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 0;
  app.canvas.setDirty(true, true);
}"""


def random_picture(width: int, height: int, seed: int) -> np.ndarray:
    """Return [height, width, 3] of uint8; neighbours have nothing in common."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def upload(server: ComfyServer, folder: Path, name: str, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(folder / name)
    return server.upload_image(folder / name)


class Comparison:
    """The comparison of the only EAM Compare on a page."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def build(self, before: list[str], after: list[str], labels: tuple[str, str] = ("", "")) -> None:
        """Put LoadImage (and ImageBatch for more than one name) before an EAM Compare, and run."""
        self.page.evaluate(BUILD, [before, after, list(labels)])
        run(self.page)
        self.ready()

    def ready(self) -> None:
        """Wait until pictures are on show."""
        self.page.wait_for_function(
            "() => document.querySelector('.eam-compare-zoom')?.textContent.includes('%')"
            " && !document.querySelector('.eam-compare[aria-busy=true]')"
        )
        self.settle()

    def settle(self) -> None:
        """Let the page draw."""
        self.page.wait_for_timeout(150)

    @property
    def box(self) -> dict[str, float]:
        return self.page.locator(".eam-compare-canvas").bounding_box()

    def text(self, name: str) -> str:
        return self.page.locator(f".eam-compare-{name}").inner_text()

    def message(self) -> str:
        return self.page.locator(".eam-compare-message").text_content()

    def percent(self) -> float:
        return float(self.text("zoom").rstrip(" %"))

    def tags(self) -> list[str]:
        """Return the names on the picture, each with its size."""
        shown = [tag.inner_text() for tag in self.page.locator(".eam-compare-tag").all() if tag.is_visible()]
        return ["  ".join(text.split("\n")) for text in shown]

    def pixels(self) -> np.ndarray:
        """Photograph what covers the canvas; return [height, width, 3]."""
        picture = Image.open(io.BytesIO(self.page.screenshot(clip=self.box)))
        return np.asarray(picture.convert("RGB"))

    def hover(self, x: float, y: float = 0.5) -> None:
        """Move the pointer to a place on the canvas, in shares of its size."""
        self.page.mouse.move(*self.at(x, y))
        self.settle()

    def at(self, x: float, y: float) -> tuple[float, float]:
        box = self.box
        return round(box["x"] + x * box["width"]), round(box["y"] + y * box["height"])

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def click(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()
        self.settle()

    def full(self) -> None:
        """Go full screen, where one pixel of the canvas is one of the screen."""
        self.click("Full screen")
        assert self.page.locator("dialog.eam-compare-dialog[open]").count() == 1

    def graph_scale(self) -> float:
        return self.page.evaluate("app.canvas.ds.scale")


def enlarged(pixels: np.ndarray, zoom: int) -> np.ndarray:
    return pixels.repeat(zoom, 0).repeat(zoom, 1)


def centred(shot: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cut the middle of a screenshot, where a fitting picture lies."""
    # Halves go up, as on the page.
    top, left = int((shot.shape[0] - height + 1) / 2), int((shot.shape[1] - width + 1) / 2)
    return shot[top : top + height, left : left + width]
