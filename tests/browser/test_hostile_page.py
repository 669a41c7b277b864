"""Texts of strangers on ComfyUI's page: captions, labels, notes, errors and saved workflows are shown, never run."""

from collections.abc import Iterator
from typing import Any

import pytest
from caption_endpoint import StandInEndpoint
from comfy_host import ComfyServer
from comparison import FIND, Comparison, random_picture, upload
from front_end import run

# Each way in which markup may run: as an element, out of an attribute, as a link, as a template, as Markdown.
EVIL = (
    "\"'><img src=x onerror=window.ran=1><svg onload=window.ran=2></svg><script>window.ran=3</script>"
    "<a href=javascript:window.ran=4>link</a>[[x|javascript:window.ran=5]] [m](javascript:window.ran=6)"
    "{{constructor.constructor('window.ran=7')()}}</textarea><iframe srcdoc='<script>parent.ran=8</script>'>"
)
FOUND = """() => ({
  ran: window.ran ?? null,
  elements: document.querySelectorAll("img[src='x'], svg[onload], iframe[srcdoc], a[href^='javascript:']").length,
})"""
NOTHING = {"ran": None, "elements": 0}
CAPTION = """([picture, url]) => {
  app.graph.clear();
  const add = (type, x, y) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  };
  const [image, loader] = [add("LoadImage", 80, 120), add("EAM_LoadCaptioner", 80, 520)];
  const caption = add("EAM_SubjectCaption", 420, 100);
  image.widgets[0].value = picture;
  loader.widgets[0].value = url;
  loader.widgets[1].value = "stand-in";
  image.connect(0, caption, "image");
  loader.connect(0, caption, "captioner");
}"""
FOLDER = """(name) => {
  app.graph.clear();
  const load = LiteGraph.createNode("EAM_LoadFolder");
  const show = LiteGraph.createNode("PreviewAny");
  app.graph.add(load);
  app.graph.add(show);
  show.pos = [450, 0];
  load.widgets[0].value = name;
  load.connect(2, show, 0);
}"""


@pytest.fixture
def asked(page: Any) -> Iterator[list[str]]:
    """Addresses that the page asks while a test runs."""
    addresses: list[str] = []

    def note(request: Any) -> None:
        addresses.append(request.url)

    page.on("request", note)
    yield addresses
    page.remove_listener("request", note)


@pytest.fixture(scope="module")
def names(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    return [upload(server, folder, f"hostile_{seed}.png", random_picture(32, 24, seed)) for seed in (1, 2)]


def test_captions_are_shown_as_text(page: Any, names: list[str]) -> None:
    with StandInEndpoint(f"A boat {EVIL}.") as endpoint:
        page.evaluate(CAPTION, [names[0], endpoint.url])
        page.wait_for_timeout(500)
        run(page)
    page.wait_for_timeout(500)
    fields = page.locator("textarea")
    texts = [fields.nth(index).input_value() for index in range(fields.count())]
    assert f"A boat {EVIL}." in texts
    assert page.evaluate(FOUND) == NOTHING


def test_labels_are_shown_as_text_after_a_run_and_in_a_saved_workflow(page: Any, names: list[str]) -> None:
    comparison = Comparison(page)
    comparison.build(names[:1], names[1:], (EVIL, f"{EVIL} after"))
    assert [tag.startswith(EVIL[:30]) for tag in comparison.tags()] == [True, True]
    assert page.evaluate(FOUND) == NOTHING
    page.evaluate(
        "async () => { const saved = app.graph.serialize(); app.graph.clear(); await app.loadGraphData(saved); }"
    )
    comparison.ready()
    assert page.evaluate(FOUND) == NOTHING


def test_a_saved_workflow_makes_the_page_ask_nobody_else(page: Any, names: list[str], asked: list[str]) -> None:
    """What a run left in a node's properties is a stranger's when the workflow is."""
    comparison = Comparison(page)
    comparison.build(names[:1], names[1:])
    saved = page.evaluate("app.graph.serialize()")
    host = page.evaluate("location.host")
    asked.clear()
    for filename, subfolder, kind in (
        ("https://evil.example/a.png", "", "temp"),
        ("//evil.example/a.png", "", "input"),
        ("a.png&redirect=https://evil.example", "../../..", "output"),
        ("javascript:window.ran=9", "", "https://evil.example"),
        (EVIL, EVIL, EVIL),
    ):
        picture = {"filename": filename, "subfolder": subfolder, "type": kind}
        pair = {"a": 0, "b": 0, "labels": [EVIL, EVIL], "a_size": [9, 9], "b_size": [9, 9], "note": EVIL, "psnr": EVIL}
        for node in saved["nodes"]:
            node["properties"] |= {"eam_compare": {"a": [picture], "b": [picture], "pairs": [pair]}}
            node["properties"] |= {"eam_used_caption": EVIL, "eam_report": EVIL, "eam_compare_mode": EVIL}
        page.evaluate("(saved) => app.loadGraphData(saved)", saved)
        page.wait_for_timeout(700)
        assert page.evaluate(FOUND) == NOTHING
    elsewhere = [each for each in asked if "evil.example" in each.split("?")[0]]
    assert not elsewhere and all(host in each.split("?")[0] for each in asked if "/view" in each)
    page.evaluate(f"{FIND} && app.graph.clear()")
    page.errors[:] = [each for each in page.errors if "/view" not in each]  # pictures that are not there


def test_errors_are_shown_as_text(page: Any) -> None:
    page.evaluate(FOLDER, EVIL.replace("/", "_"))
    page.wait_for_timeout(300)
    with pytest.raises(Exception, match="folder: expected"):
        run(page)
    page.wait_for_timeout(1000)
    assert page.evaluate(FOUND) == NOTHING
    page.keyboard.press("Escape")
