"""Write locales/en from the nodes' own schemas, so that the two cannot drift; locales/zh is written by hand."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from comfy_host import REPO, ComfyServer

LOCALES = REPO / "locales"
CATEGORY = "EAM"
_SPECIAL = "{}@|"  # the front end's message format gives these a meaning


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        content = english(server.object_info())
    (LOCALES / "en").mkdir(parents=True, exist_ok=True)
    (LOCALES / "en" / "nodeDefs.json").write_text(as_text(content), encoding="utf-8")
    missing = sorted(paths(content) ^ paths(json.loads((LOCALES / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))))
    print("\n".join(["locales/zh differs in:", *missing]) if missing else "locales/zh has the same keys")
    return 1 if missing else 0


def our_nodes(object_info: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of /object_info that are this pack's."""
    return {name: info for name, info in object_info.items() if info["category"].split("/")[0] == CATEGORY}


def node_inputs(info: dict[str, Any]) -> dict[str, Any]:
    """Return a node's inputs by name, with their options; hidden ones are left out."""
    return {
        name: (spec[1] if len(spec) > 1 else {})
        for section in ("required", "optional")
        for name, spec in info["input"].get(section, {}).items()
    }


def english(object_info: dict[str, Any]) -> dict[str, Any]:
    """Turn what the server says of its nodes into the content of nodeDefs.json.

    Raises:
        ValueError: a text has a character that the front end would not show.
    """
    nodes = {name: _node(info) for name, info in sorted(our_nodes(object_info).items())}
    for path, text in _leaves(nodes):
        if set(text) & set(_SPECIAL):
            raise ValueError(f"expected text without any of {_SPECIAL}, got {path}: {text}; say it in other words")
    return nodes


def _node(info: dict[str, Any]) -> dict[str, Any]:
    inputs = {
        name: {"name": name, **({"tooltip": options["tooltip"]} if options.get("tooltip") else {})}
        for name, options in node_inputs(info).items()
    }
    outputs = {}
    for index, (name, kind) in enumerate(zip(info["output_name"], info["output"])):
        tooltip = (info.get("output_tooltips") or [])[index : index + 1]
        # An output that is called as its type has the front end's own name for that type.
        said = {**({"name": name} if name != kind else {}), **({"tooltip": tooltip[0]} if any(tooltip) else {})}
        if said:
            outputs[str(index)] = said
    found = {"display_name": info["display_name"], "description": info["description"]}
    return {**found, "inputs": inputs, "outputs": outputs}


def _leaves(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in content.items():
        path = f"{prefix}{key}"
        found += _leaves(value, f"{path}.") if isinstance(value, dict) else [(path, value)]
    return found


def paths(content: dict[str, Any]) -> set[str]:
    """Return the dotted paths of all texts."""
    return {path for path, _ in _leaves(content)}


def texts(content: dict[str, Any]) -> dict[str, str]:
    """Return all texts by their dotted paths."""
    return dict(_leaves(content))


def as_text(content: dict[str, Any]) -> str:
    """Write a locale file's text."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    sys.exit(main())
