"""EAM Compare through its life: full screen that is taken away, undo, tabs, copies, quick steps, a locked canvas."""

from typing import Any

import pytest
from comfy_host import ComfyServer
from comparison import FIND, Comparison, random_picture, upload
from front_end import run

TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"
SHOWN = f"{FIND}?.properties.eam_compare?.b[0].filename ?? null"
SAVED = f"{TRACKER}.activeState.nodes.find((node) => node.type === 'EAM_Compare').properties.eam_compare.b[0].filename"
COUNT = """() => {
  window.made = window.shut = 0;
  const make = window.createImageBitmap;
  window.createImageBitmap = async (...given) => {
    const bitmap = await make(...given);
    window.made += 1;
    const close = bitmap.close.bind(bitmap);
    bitmap.close = () => {
      if (bitmap.width) window.shut += 1;
      close();
    };
    return bitmap;
  };
}"""
OPEN = "made - shut"


@pytest.fixture(scope="module")
def names(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    return [upload(server, folder, f"life_{seed}.png", random_picture(60, 40, seed)) for seed in range(5)]


@pytest.fixture
def comparison(page: Any, names: list[str]) -> Comparison:
    comparison = Comparison(page)
    comparison.build(names[:1], names[1:2])
    page.evaluate(f"{TRACKER}.checkState()")
    return comparison


def undo_steps(page: Any) -> int:
    page.evaluate(f"{TRACKER}.checkState()")
    return page.evaluate(f"{TRACKER}.undoQueue.length")


def run_with_seed(page: Any, name: str) -> str:
    """Run with another second picture; return the name of the run's."""
    page.evaluate(
        "(name) => { const all = app.graph.nodes.filter((node) => node.comfyClass === 'LoadImage');"
        " all[1].widgets[0].value = name; }",
        name,
    )
    page.evaluate(f"{TRACKER}.checkState()")
    run(page)
    return page.evaluate(SHOWN)


def test_full_screen_ends_with_its_node_and_undo_stays_out(comparison: Comparison) -> None:
    page = comparison.page
    page.evaluate(f"{FIND}.pos = [660, 150]")
    before = undo_steps(page)
    comparison.full()
    for keys in ("Control+z", "Control+y", "Control+Shift+Z"):
        comparison.press(keys)
    assert page.locator("dialog.eam-compare-dialog[open]").count() == 1
    assert page.evaluate(f"{TRACKER}.undoQueue.length") == before
    assert page.evaluate(f"[...{FIND}.pos]") == [660, 150]
    page.evaluate(f"app.graph.remove({FIND})")
    page.wait_for_timeout(300)
    assert page.locator("dialog.eam-compare-dialog").count() == 0
    undo_steps(page)
    page.keyboard.press("Control+z")
    comparison.ready()


def test_runs_are_no_steps_of_undo_and_stay_when_it_goes_back(comparison: Comparison, names: list[str]) -> None:
    page = comparison.page
    last = run_with_seed(page, names[2])
    steps = undo_steps(page)
    page.evaluate(f"{FIND}.title = 'moved'")
    assert undo_steps(page) == steps + 1
    page.evaluate(f"{FIND}.title = 'again'")
    undo_steps(page)
    second = run_with_seed(page, names[3])
    assert second != last
    assert undo_steps(page) == steps + 3, "the run is a step of its own"
    assert page.evaluate(f"{TRACKER}.workflow.isModified")
    assert page.evaluate(SAVED) == second, "what is saved lacks the last run"
    for _ in range(3):
        page.evaluate(f"{TRACKER}.undo()")
        page.wait_for_timeout(200)
        assert page.evaluate(SHOWN) == second
    assert page.evaluate(SAVED) == second


def test_a_run_comes_to_the_workflow_that_was_queued(comparison: Comparison, names: list[str]) -> None:
    page = comparison.page
    before = page.evaluate(SHOWN)
    page.evaluate("window.first = app.extensionManager.workflow.activeWorkflow.path")
    other = page.evaluate("app.graph.serialize()")
    page.evaluate(
        "(name) => { app.graph.nodes.filter((node) => node.comfyClass === 'LoadImage')[1].widgets[0].value = name; }",
        names[4],
    )
    page.evaluate(f"{TRACKER}.checkState()")
    # Both workflows have the same nodes; the second is opened as soon as the first one's run is accepted.
    page.evaluate(
        """async (other) => {
          const held = [];
          const dispatch = app.api.dispatchCustomEvent.bind(app.api);
          app.api.dispatchCustomEvent = (name, detail) => {
            if (["executed", "execution_success", "executing"].includes(name)) held.push([name, detail]);
            else dispatch(name, detail);
          };
          await app.queuePrompt(0);
          const ended = () => held.some(([name]) => name === "execution_success");
          while (!ended()) await new Promise((done) => setTimeout(done, 50));
          await app.loadGraphData(other, true, true, "second tab");
          app.api.dispatchCustomEvent = dispatch;
          held.forEach(([name, detail]) => dispatch(name, detail));
        }""",
        other,
    )
    page.wait_for_timeout(500)
    assert page.evaluate("app.extensionManager.workflow.activeWorkflow.path !== first")
    assert page.evaluate(SHOWN) == before, "the run came into another workflow"
    page.locator(".workflow-tabs .p-togglebutton, .workflow-tab").first.wait_for(timeout=10_000)
    page.evaluate(
        """async () => {
          const store = app.extensionManager.workflow;
          const index = store.openWorkflows.findIndex((one) => one.path === first);
          const now = store.openWorkflows.findIndex((one) => one.path === store.activeWorkflow.path);
          const way = index < now ? "Previous" : "Next";
          await app.extensionManager.command.execute(`Workspace.${way}OpenedWorkflow`);
        }"""
    )
    page.wait_for_timeout(500)
    assert page.evaluate("app.extensionManager.workflow.activeWorkflow.path === first")
    comparison.ready()
    assert page.evaluate(SHOWN) not in (None, before), "the run was lost"


def test_copies_and_quick_steps_leave_no_pictures_behind(page: Any, names: list[str]) -> None:
    page.evaluate(COUNT)
    comparison = Comparison(page)
    comparison.build(names[:4], names[1:5])
    assert page.evaluate(OPEN) == 2
    page.evaluate(f"for (let time = 0; time < 5; time += 1) {FIND}.clone()")
    page.wait_for_timeout(500)
    assert page.evaluate(OPEN) == 2, "copies that are in no graph hold pictures"
    page.locator(".eam-compare-panel").focus()
    for _ in range(11):
        page.keyboard.press("n")
    page.wait_for_timeout(1000)
    assert page.evaluate(OPEN) == 2
    assert "4 / 4" in page.locator("[aria-label='Images of the batch']").inner_text()
    page.evaluate(f"app.graph.remove({FIND})")
    page.wait_for_timeout(300)
    assert page.evaluate(OPEN) == 0


def test_a_drag_ends_though_its_release_was_not_seen(comparison: Comparison) -> None:
    page = comparison.page
    comparison.click("Side by side")
    page.locator(".eam-compare-panel").focus()
    comparison.press("8")
    page.mouse.move(*comparison.at(0.2, 0.5))
    page.mouse.down()
    page.mouse.move(*comparison.at(0.22, 0.55), steps=3)
    comparison.press("Enter")
    page.mouse.up()
    page.mouse.move(*comparison.at(0.2, 0.9))
    comparison.settle()
    left = comparison.pixels()[:, :100]
    page.mouse.move(*comparison.at(0.3, 0.95), steps=3)
    comparison.settle()
    assert (comparison.pixels()[:, :100] == left).all(), "the picture follows a pointer that holds nothing"


def test_locked_canvas_keys_without_effect_and_wheel_over_the_keys(comparison: Comparison) -> None:
    page = comparison.page
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.Lock')")
    fit, scale = comparison.percent(), comparison.graph_scale()
    page.mouse.move(*comparison.at(0.5, 0.5))
    page.mouse.wheel(0, -240)
    comparison.settle()
    assert comparison.percent() > fit and comparison.graph_scale() == scale
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.Unlock')")

    page.evaluate("window.heard = []; document.addEventListener('keydown', ({ key }) => window.heard.push(key))")
    page.locator(".eam-compare-panel").focus()
    comparison.press(*"rnp", ",", "0")
    assert page.evaluate("heard") == ["r", "n", "p"], "wipe of one pair has no use for them"
    comparison.press("?")
    page.locator(".eam-compare-help").hover()
    page.mouse.wheel(0, -240)
    comparison.settle()
    assert comparison.graph_scale() == scale


def test_canvas_has_the_pixels_of_the_screen(comparison: Comparison) -> None:
    page = comparison.page
    session = page.context.new_cdp_session(page)
    for ratio in (2, 1):
        metrics = {"width": 1400 - 200 * ratio, "height": 900, "deviceScaleFactor": ratio, "mobile": False}
        session.send("Emulation.setDeviceMetricsOverride", metrics)
        page.wait_for_timeout(500)
        width = page.evaluate("document.querySelector('.eam-compare-canvas').width")
        assert width == pytest.approx(ratio * comparison.box["width"], abs=2)
        if ratio == 2:
            page.evaluate("document.querySelector('.eam-compare-panel').focus({ preventScroll: true })")
            comparison.press("Enter")  # the second time in full screen
            assert page.locator("dialog.eam-compare-dialog[open]").count() == 1
    comparison.press("Escape")
    session.detach()
