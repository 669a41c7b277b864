"""Turn a workflow as the browser saves it into the prompt that ComfyUI's HTTP API takes."""

from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}
ANNOTATIONS = {"Note", "MarkdownNote"}


def graph_to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """Convert a saved workflow into API format.

    Args:
        workflow: the JSON of a saved workflow, format version 0.4.
        object_info: what the server's /object_info answers; it gives each node's inputs in the order of its widgets.

    Returns:
        {node id: {"class_type", "inputs"}}, an input being a value or [source node id, output slot].

    Raises:
        ValueError: the workflow uses a node the server does not have, a bypassed or muted node, or a node whose
            values do not match the server's version of it.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in ANNOTATIONS:
            continue
        if kind not in object_info:
            raise ValueError(f"expected nodes that the server has, got {kind}; install the pack it belongs to")
        if node.get("mode", 0) != 0:
            raise ValueError(f"expected active nodes only, got a muted or bypassed {kind}; enable or delete it")
        inputs = _widget_values(node, object_info[kind])
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                inputs[socket["name"]] = sources[socket["link"]]
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    values = list(node.get("widgets_values") or [])
    inputs = {}
    for name, options, optional in _widgets(info):
        if not values and optional:
            continue  # newer than the workflow; the server takes its default
        if not values:
            raise ValueError(f"expected a value for {name} of {node['type']}, got too few; save the workflow again")
        inputs[name] = values.pop(0)
        # The browser saves its own helper widgets (what to do with a seed, the upload button) right behind.
        if options.get("control_after_generate") or name in ("seed", "noise_seed"):
            _drop_first(values, AFTER_GENERATE)
        if options.get("image_upload"):
            _drop_first(values, {"image"})
    if values:
        raise ValueError(
            f"expected {len(inputs)} values for {node['type']}, got also {values}; save the workflow again"
        )
    return inputs


def _widgets(info: dict[str, Any]) -> list[tuple[str, dict[str, Any], bool]]:
    """List a node's inputs that the browser shows as widgets, in order: name, options, and whether it is optional."""
    found = []
    for section in ("required", "optional"):
        specs = info["input"].get(section, {})
        for name in info.get("input_order", {}).get(section, specs):
            kind, options = specs[name][0], specs[name][1] if len(specs[name]) > 1 else {}
            if (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput"):
                found.append((name, options, section == "optional"))
    return found


def _drop_first(values: list[Any], helpers: set[str]) -> None:
    if values and isinstance(values[0], str) and values[0] in helpers:
        values.pop(0)
