"""The real front end in real Chromium, with classic nodes and with Nodes 2.0, on one ComfyUI for this folder."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "comfyui"))
sys.path.append(str(Path(__file__).resolve().parent))

from comfy_host import ComfyServer
from front_end import settle

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
KINDS = ["classic", "nodes 2.0"]

# What ComfyUI's own page says on a machine without internet or on a fresh user folder: (address or source, text).
OWN_ERRORS = [
    (r"^https?://(?!127\.0\.0\.1)", r"Failed to load resource: net::ERR_"),
    (r"/assets/vendor-", r"Connecting to 'https://api\.comfy\.org/.*Content Security Policy"),
    (r"/api/userdata[/?]|/user\.css$|/favicon\.ico$", r"status of 404"),
    (
        r"/vue\.esm-browser",
        r"^TypeError: Cannot read properties of undefined \(reading 'id'\)\s+at onChange \S+/assets/index-",
    ),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a test of a page have a second try: a busy machine draws late. One that is wrong fails both times."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with ComfyServer(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; CHROMIUM names one")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Errors(list[str]):
    """The console errors of a page and the exceptions nobody caught, but for ComfyUI's own."""

    def watch(self, page: Any) -> None:
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.append(f"uncaught: {error}"))

    def _heard(self, message: Any) -> None:
        if message.type != "error":
            return
        source = message.location.get("url", "")
        if not any(re.search(where, source) and re.search(what, message.text) for where, what in OWN_ERRORS):
            self.append(f"{message.text} ({source})")


Opener = Callable[..., Any]


@contextmanager
def opened(browser: Any, server: ComfyServer, kind: str, **options: Any) -> Iterator[Any]:
    """Open ComfyUI's page with nodes of a kind; `options` are of playwright's new_context.

    The page has `kind` and `errors`; leaving fails if errors were heard.
    """
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": kind == "nodes 2.0"}
    requests.post(f"{server.url}/settings", json=settings, timeout=60).raise_for_status()
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
    page = context.new_page()
    page.kind, page.errors = kind, Errors()
    page.errors.watch(page)
    page.goto(server.url)
    settle(page)
    yield page
    context.close()
    assert not page.errors


@pytest.fixture
def open_page(browser: Any, server: ComfyServer) -> Iterator[Opener]:
    """Give a function that opens a page for one test: open_page(kind, **options)."""
    with ExitStack() as stack:
        yield lambda kind, **options: stack.enter_context(opened(browser, server, kind, **options))


@pytest.fixture(scope="module")
def classic_page(browser: Any, server: ComfyServer) -> Iterator[Any]:
    """One page for all tests of a module, as opening it takes seconds."""
    with opened(browser, server, "classic") as page:
        yield page


@pytest.fixture(params=KINDS)
def page(request: pytest.FixtureRequest, open_page: Opener) -> Any:
    return open_page(request.param)
