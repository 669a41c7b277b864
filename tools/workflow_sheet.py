"""Lay out a workflow in columns and write it as the browser saves it (format 0.4), after the server's /object_info."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from comfy_prompt import WIDGET_TYPES

MARGIN, TOP, GAP, COLUMN_GAP = 40, 120, 70, 70
TITLE, ROW, WIDGET = 30, 20, 26
"""Heights in the browser: a node's title above its position, a row of sockets, a widget."""
MULTILINE, PICTURE = 100, 280
GROUP_PAD, GROUP_TITLE = 20, 45
WIDTHS = {"CLIPTextEncode": 340, "EAM_SubjectCaption": 360, "EAM_Upscale": 340}
WIDTHS |= dict.fromkeys(("SaveImage", "EAM_Compare", "EAM_Report", "EAM_SaveFolder", "MarkdownNote"), 420)
WIDTH = 300
HEIGHTS = {"SaveImage": 520, "EAM_Compare": 520, "EAM_SaveFolder": 580, "EAM_Report": 320}
"""Of nodes that show pictures or text once they ran."""
NOTE_COLORS = {"color": "#432", "bgcolor": "#653"}
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Link:
    """One output of a node on the sheet."""

    node: "Node"
    output: str


@dataclass(kw_only=True, eq=False)
class Node:
    """One node; `node["LATENT"]` is its output of that name.

    Attributes:
        id: in the workflow.
        kind: the class of the node.
        title: above it.
        inputs: a value or a link for each input that is not left at its default.
        column: number of the column it stands in.
        extra: further fields of the saved node, such as colours.
    """

    id: int
    kind: str
    title: str
    inputs: Json
    column: int
    extra: Json = field(default_factory=dict)

    def __getitem__(self, output: str) -> Link:
        return Link(node=self, output=output)


class Sheet:
    """A workflow in the making: columns with a title, from left to right, each filled from top to bottom."""

    def __init__(self, note: str, workflow_id: str) -> None:
        """Begin with the note in a column of its own.

        Args:
            note: Markdown that says what the workflow is for.
            workflow_id: a UUID.
        """
        self.id = workflow_id
        self.note = note
        self.columns: list[str] = [""]
        self.nodes: list[Node] = []

    def column(self, title: str) -> None:
        """Go on in a new column."""
        self.columns.append(title)

    def add(self, kind: str, title: str, extra: Json | None = None, **inputs: Any) -> Node:
        """Put a node below the last one of this column."""
        column = len(self.columns) - 1
        node = Node(id=len(self.nodes) + 1, kind=kind, title=title, inputs=inputs, column=column, extra=extra or {})
        self.nodes.append(node)
        return node

    def workflow(self, object_info: Json) -> Json:
        """Return the saved workflow.

        Args:
            object_info: what the server's /object_info answers.

        Raises:
            ValueError: a node, input or output that the server does not have.
        """
        links: list[list[Any]] = []
        saved = [self._saved(node, object_info, links) for node in self.nodes]
        for link in links:
            saved[link[1] - 1]["outputs"][link[2]]["links"].append(link[0])
        note = _plain(len(saved) + 1, "MarkdownNote", "Read me", [WIDTHS["MarkdownNote"], _note_height(self.note)])
        saved.append({**note, "widgets_values": [self.note], **NOTE_COLORS})
        groups = self._place(saved)
        for order, node in enumerate(saved):
            node["order"] = order
        return {
            "id": self.id,
            "revision": 0,
            "last_node_id": len(saved),
            "last_link_id": len(links),
            "nodes": saved,
            "links": links,
            "groups": groups,
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [20, 0]}},
            "version": 0.4,
        }

    def _saved(self, node: Node, object_info: Json, links: list[list[Any]]) -> Json:
        if node.kind not in object_info:
            raise ValueError(f"expected nodes that the server has, got {node.kind}")
        info = object_info[node.kind]
        sockets, values, height = _inputs(node, info, object_info, links)
        names = zip(info["output"], info["output_name"], strict=True)
        outputs = [
            {"name": name, "type": kind, "links": [], "slot_index": slot} for slot, (kind, name) in enumerate(names)
        ]
        rows = max(sum("widget" not in socket for socket in sockets), len(outputs))
        size = [WIDTHS.get(node.kind, WIDTH), HEIGHTS.get(node.kind, height + ROW * rows + 20)]
        saved = _plain(node.id, node.kind, node.title, size)
        return {**saved, "inputs": sockets, "outputs": outputs, "widgets_values": values, **node.extra}

    def _place(self, saved: list[Json]) -> list[Json]:
        """Set all positions; return a group around each column with a title."""
        groups, left = [], MARGIN
        for number, title in enumerate(self.columns):
            column = (
                [saved[-1]] if number == 0 else [saved[node.id - 1] for node in self.nodes if node.column == number]
            )
            top, width = TOP, max(node["size"][0] for node in column)
            for node in column:
                node["pos"] = [left, top]
                node["size"][0] = width
                top += node["size"][1] + GAP
            if title:
                high = top - GAP + GROUP_PAD - (TOP - TITLE - GROUP_TITLE)
                bounding = [left - GROUP_PAD, TOP - TITLE - GROUP_TITLE, width + 2 * GROUP_PAD, high]
                group = {"id": number, "title": title, "bounding": bounding, "color": "#3f789e"}
                groups.append({**group, "font_size": 24, "flags": {}})
            left += width + COLUMN_GAP
        return groups


def _plain(number: int, kind: str, title: str, size: list[int]) -> Json:
    properties = {} if kind == "MarkdownNote" else {"Node name for S&R": kind}
    head = {"id": number, "type": kind, "title": title, "pos": [0, 0], "size": size, "flags": {}, "order": 0, "mode": 0}
    return {**head, "inputs": [], "outputs": [], "properties": properties, "widgets_values": []}


def _inputs(node: Node, info: Json, object_info: Json, links: list[list[Any]]) -> tuple[list[Json], list[Any], int]:
    """Return a node's sockets, the values of its widgets and their height; add its links."""
    sockets, widgets, values, height, left = [], [], [], 0, dict(node.inputs)
    for name, kind, options, optional in _specs(info):
        given = left.pop(name, None)
        socket: Json = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": None}
        if optional:
            socket["shape"] = 7
        if isinstance(given, Link):
            socket["link"] = given
        if not (isinstance(kind, list) or kind in WIDGET_TYPES):
            sockets.append(socket)
            continue
        widgets.append({**socket, "widget": {"name": name}})
        if options.get("image_upload"):
            widgets.append({"name": "upload", "type": "IMAGEUPLOAD", "link": None, "widget": {"name": "upload"}})
        value = _default(kind, options) if given is None or isinstance(given, Link) else given
        values += [value, *_helpers(name, options)]
        height += _height(options)
    if left:
        raise ValueError(f"expected inputs that {node.kind} has, got {', '.join(left)}")
    for slot, socket in enumerate([*sockets, *widgets]):  # the browser puts sockets in front of widgets
        if isinstance(socket["link"], Link):
            socket["link"] = _linked(socket["link"], node, slot, object_info, links)
    return [*sockets, *widgets], values, height


def _specs(info: Json) -> Iterator[tuple[str, Any, Json, bool]]:
    """Yield name, type, options of each input, and whether it is optional."""
    for section in ("required", "optional"):
        for name, spec in info["input"].get(section, {}).items():
            yield name, spec[0], spec[1] if len(spec) > 1 else {}, section == "optional"


def _linked(link: Link, target: Node, slot: int, object_info: Json, links: list[list[Any]]) -> int:
    info = object_info[link.node.kind]
    if link.output not in info["output_name"]:
        raise ValueError(f"expected an output of {link.node.kind}, got {link.output}")
    source = info["output_name"].index(link.output)
    links.append([len(links) + 1, link.node.id, source, target.id, slot, info["output"][source]])
    return len(links)


def _default(kind: Any, options: Json) -> Any:
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options", [])
    return choices[0] if choices else {"STRING": "", "BOOLEAN": False}.get(kind, 0)


def _helpers(name: str, options: Json) -> list[str]:
    """Return the values of widgets that the browser puts behind one."""
    helpers = ["image"] if options.get("image_upload") else []
    asked = options.get("control_after_generate")
    return helpers + (["fixed"] if asked or (asked is None and name in ("seed", "noise_seed")) else [])


def _note_height(note: str) -> int:
    """Return about what Markdown takes at the note's width."""
    lines = [line for line in note.splitlines() if line]
    return 60 + sum(12 + 16 * (1 + len(line) // 66) for line in lines)


def _height(options: Json) -> int:
    more = (MULTILINE if options.get("multiline") else 0) + (PICTURE if options.get("image_upload") else 0)
    return (2 if options.get("image_upload") or options.get("control_after_generate") else 1) * WIDGET + more
