"""What tests do with ComfyUI's page: wait for it, run its workflow."""

from typing import Any

READY = "() => !!(window.app?.extensionManager && window.LiteGraph?.registered_node_types?.EAM_Compare)"


def settle(page: Any) -> None:
    """Wait until ComfyUI's page has loaded its nodes and its default workflow."""
    page.wait_for_function(READY, timeout=60_000)
    page.wait_for_timeout(1000)


def run(page: Any, seconds: float = 60) -> None:
    """Queue the workflow on the page and wait for its end."""
    page.evaluate("""void (window.ended = new Promise((done, fail) => {
      app.api.addEventListener('execution_success', done, { once: true });
      app.api.addEventListener('execution_error', ({ detail }) => fail(detail.exception_message), { once: true });
    }))""")
    page.evaluate("void app.queuePrompt(0)")
    page.evaluate(
        "(ms) => Promise.race([window.ended, new Promise((_, fail) => setTimeout(() => fail('no end'), ms))])",
        seconds * 1000,
    )
    page.wait_for_timeout(300)
