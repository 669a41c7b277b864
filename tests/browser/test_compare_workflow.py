"""EAM Compare in the example workflow, with classic nodes and Nodes 2.0: run, look, save, reload; screenshots."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_host import REPO, ComfyServer
from comparison import FIND, Comparison, centred
from front_end import run, settle
from PIL import Image

PHOTO = REPO / "eam_core" / "assets" / "sample_lr.png"
GONE = "The images of the last run are no longer in ComfyUI's temp folder: run the workflow again."
SHOW = f"""() => {{
  const node = {FIND};
  const wanted = Math.max(...node.size) > 700 ? 1 : 1.25;
  app.canvas.ds.scale = wanted;
  app.canvas.ds.offset[0] = 420 / wanted - node.pos[0];
  app.canvas.ds.offset[1] = 170 / wanted - node.pos[1];
  app.canvas.setDirty(true, true);
}}"""


@pytest.fixture(scope="module")
def workflow(server: ComfyServer) -> dict[str, Any]:
    server.upload_image(PHOTO)
    loaded = json.loads((REPO / "example_workflows" / "eam_upscale.json").read_text())
    for node in loaded["nodes"]:
        if node["type"] == "LoadImage":
            node["widgets_values"][0] = PHOTO.name
    return loaded


def load(page: Any, workflow: dict[str, Any]) -> Comparison:
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    page.wait_for_timeout(500)
    page.evaluate(SHOW)
    page.wait_for_timeout(500)
    return Comparison(page)


def keep(page: Any, name: str) -> None:
    """Leave a screenshot for the docs in the folder that EAM_SCREENSHOTS names."""
    if folder := os.environ.get("EAM_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/compare_{name}.png")


def kept_run(page: Any) -> dict[str, Any]:
    return page.evaluate(f"{FIND}.properties.eam_compare")


def saved_pictures(page: Any, server: ComfyServer) -> tuple[np.ndarray, np.ndarray]:
    shown = kept_run(page)
    before, after = (Image.open(io.BytesIO(server.fetch(shown[side][0]))) for side in ("a", "b"))
    assert np.array_equal(np.asarray(before), np.asarray(Image.open(PHOTO)))
    return np.asarray(before.resize(after.size, Image.Resampling.BICUBIC)), np.asarray(after)


def error_of(shown: np.ndarray, picture: np.ndarray, part: slice) -> float:
    """Return how far a part of the screen lies from a picture; the graph's zoom may shift it by a pixel."""
    height, width = shown.shape[:2]
    picture = np.asarray(Image.fromarray(picture).resize((width, height)), int)
    rows = slice(height // 8, -8)  # the names are above
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return min(np.abs(np.roll(shown, shift, (0, 1)) - picture)[rows, part].mean() for shift in shifts)


def check_wipe(comparison: Comparison, pictures: tuple[np.ndarray, np.ndarray], shares: tuple[float, ...]) -> None:
    """Look left and right of the line."""
    for share in shares:
        comparison.hover(share)
        shot = comparison.pixels()
        height = min(shot.shape[:2])
        shown = centred(shot, height, height).astype(int)
        line = round(share * shot.shape[1]) - (shot.shape[1] - height) // 2
        for part, wanted, other in (
            (slice(8, line - 8), *pictures),
            (slice(line + 8, -8), *pictures[::-1]),
        ):
            right, wrong = (error_of(shown, picture, part) for picture in (wanted, other))
            assert right < 3 and right < 0.7 * wrong, (share, right, wrong)


def test_example_workflow_is_compared(server: ComfyServer, page: Any, workflow: dict[str, Any]) -> None:
    comparison = load(page, workflow)
    assert comparison.message() == "Run the workflow to compare two images."
    run(page, 180)
    comparison.ready()
    pictures = saved_pictures(page, server)
    check_wipe(comparison, pictures, (0.35, 0.6))
    (pair,) = kept_run(page)["pairs"]
    assert comparison.text("figures") == f"PSNR {pair['psnr']:.2f} dB  ·  SSIM {pair['ssim']:.4f}"
    assert comparison.text("note").startswith("Sizes differ: before is enlarged bicubically to 512 × 512")
    assert page.evaluate(f"{FIND}.imgs?.length ?? 0") == 0, "the stock preview is there too"
    kind = page.kind.replace(" ", "_")
    comparison.hover(0.5)
    keep(page, f"node_{kind}")

    comparison.click("Side by side")
    saved = page.evaluate("app.graph.serialize()")
    page.reload()
    settle(page)
    comparison = load(page, saved)
    comparison.ready()
    assert page.get_by_role("button", name="Side by side").get_attribute("aria-pressed") == "true"
    assert comparison.text("figures").startswith(f"PSNR {pair['psnr']:.2f}")
    comparison.click("Wipe")
    check_wipe(comparison, pictures, (0.5,))

    comparison.full()
    for mode in ("Wipe", "Side by side", "Difference"):
        comparison.click(mode)
        comparison.hover(0.5 if mode == "Wipe" else 0.3, 0.55)
        keep(page, f"full_{mode.split()[0].lower()}_{kind}")
    comparison.click("Flicker")
    page.locator(".eam-compare-panel").focus()
    while not comparison.tags()[0].startswith("After"):
        comparison.press(" ")
    keep(page, f"full_flicker_{kind}")
    page.mouse.move(*comparison.at(0.55, 0.6))
    comparison.click("Wipe")
    comparison.press("8")
    comparison.hover(0.5, 0.55)
    keep(page, f"full_pixels_{kind}")
    comparison.press("Escape")
    assert page.locator("dialog").count() == 0

    name = kept_run(page)["b"][0]["filename"]
    shutil.move(server.work_dir / "temp" / name, server.work_dir / "temp" / f"{name}.away")
    page.reload()
    settle(page)
    comparison = load(page, saved)
    page.wait_for_function("(text) => document.querySelector('.eam-compare-message').textContent === text", arg=GONE)
    shutil.move(server.work_dir / "temp" / f"{name}.away", server.work_dir / "temp" / name)


def test_wheel_is_the_pictures_over_the_picture_alone(page: Any, workflow: dict[str, Any]) -> None:
    comparison = load(page, workflow)
    before = comparison.graph_scale()
    comparison.page.mouse.move(*comparison.at(0.5, 0.5))
    comparison.page.mouse.wheel(0, -240)
    comparison.settle()
    assert comparison.graph_scale() > before, "nothing is shown, so the wheel is the graph's"

    run(page, 180)
    comparison.ready()
    page.evaluate(SHOW)
    page.wait_for_timeout(500)
    before, zoom = comparison.graph_scale(), comparison.percent()
    comparison.page.mouse.move(*comparison.at(0.5, 0.5))
    comparison.page.mouse.wheel(0, -480)
    comparison.settle()
    assert comparison.percent() > 1.5 * zoom
    assert comparison.graph_scale() == before
    page.get_by_role("button", name="Difference").hover()
    page.mouse.wheel(0, -240)
    page.wait_for_timeout(300)
    assert comparison.graph_scale() > before

    # The canvas covers as many pixels as the screen gives it, whatever the graph's zoom.
    box = comparison.box
    width = page.evaluate("document.querySelector('.eam-compare-canvas').width")
    assert width == pytest.approx(box["width"], abs=1)


def test_a_drag_pans_the_picture_and_leaves_the_node(page: Any, workflow: dict[str, Any]) -> None:
    comparison = load(page, workflow)
    run(page, 180)
    comparison.ready()
    place = page.evaluate(f"[...{FIND}.pos]")
    comparison.click("Flicker")
    comparison.page.locator(".eam-compare-panel").focus()
    comparison.press("8", " ")
    first, shown = comparison.pixels(), comparison.tags()
    page.mouse.move(*comparison.at(0.5, 0.5))
    page.mouse.down()
    page.mouse.move(*comparison.at(0.4, 0.5), steps=4)
    page.mouse.up()
    comparison.settle()
    assert page.evaluate(f"[...{FIND}.pos]") == place
    assert comparison.tags() == shown, "a drag is no click"
    last, moved = comparison.pixels(), first.shape[1] // 10
    rows = slice(60, -60)
    errors = [
        np.abs(last[rows, :-step].astype(int) - first[rows, step:]).mean() for step in range(moved - 4, moved + 5)
    ]
    assert min(errors) < 1 < np.abs(last.astype(int) - first).mean(), "the picture did not follow the pointer"


def test_workflow_of_an_older_version_and_damaged_properties(page: Any, workflow: dict[str, Any]) -> None:
    for kept in (None, 3, {"a": [], "b": [], "pairs": []}, {"a": [{}], "b": [{"filename": 1}], "pairs": [{}]}):
        older = json.loads(json.dumps(workflow))
        for node in older["nodes"]:
            if node["type"] == "EAM_Compare":
                node["widgets_values"] = []
                node["properties"] |= {"eam_compare": kept, "eam_compare_mode": "unheard"}
        comparison = load(page, older)
        assert comparison.message() == "Run the workflow to compare two images."
        assert comparison.page.get_by_role("button", name="Wipe").get_attribute("aria-pressed") == "true"
