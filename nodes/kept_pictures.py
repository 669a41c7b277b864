"""The route /eam/kept_pictures: which pictures of an earlier run still lie in ComfyUI's temp folder.

A page that asked for a missing picture itself would get an error in the browser's console for each.
"""

from __future__ import annotations

import os
from typing import Any

ROUTE = "/eam/kept_pictures"
MAX_NAMES = 10_000


def serve_kept_pictures() -> None:
    """Add the route to the running server, if there is one."""
    from aiohttp import web
    from server import PromptServer

    running = getattr(PromptServer, "instance", None)
    if running is None:
        return

    @running.routes.post(ROUTE)
    async def kept_pictures(request: web.Request) -> web.Response:
        # Core compares Origin and Host on this machine, but lets a sandboxed frame's "null" through.
        if request.headers.get("Origin") == "null" or request.headers.get("Sec-Fetch-Site") == "cross-site":
            return web.json_response({"error": "expected a request of ComfyUI's own page"}, status=403)
        try:
            names = (await request.json())["names"]
            return web.json_response({"kept": kept(names)})
        except (ValueError, KeyError, TypeError, RecursionError):
            return web.json_response({"error": 'expected {"names": [file names in the temp folder]}'}, status=400)


def kept(names: list[Any]) -> list[bool]:
    """Say of each file name whether the temp folder holds it; names that lead out of it count as missing.

    Raises:
        TypeError: not a list of at most MAX_NAMES strings.
    """
    import folder_paths

    if not isinstance(names, list) or len(names) > MAX_NAMES or not all(isinstance(name, str) for name in names):
        raise TypeError("not a list of names")
    folder = folder_paths.get_temp_directory()
    return [_is_plain(name) and os.path.isfile(os.path.join(folder, name)) for name in names]


def _is_plain(name: str) -> bool:
    return bool(name) and name == os.path.basename(name) and "\0" not in name and "\\" not in name and ":" not in name
