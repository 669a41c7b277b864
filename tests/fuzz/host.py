"""The target that needs a ComfyUI: graphs as its page sends them, checked by core and read by the nodes.

Core runs in this process, without its server, on a folder of its own.
"""

import asyncio
import importlib.util
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import samples
import strategies
import torch
from targets import Target, check_sentence

from eam_core.errors import EAMError
from eam_core.images import save_image

REPO = Path(__file__).resolve().parents[2]
_PACK = "eam_pack"
_host: dict[str, Any] = {}


def start(folder: Path) -> None:
    """Import ComfyUI and this pack; input, output and models lie in the folder."""
    sys.path.append(str(REPO / "tools"))
    from comfy_install import comfy_root

    for name in ("input/sub", "output", "temp", "user", "models", "custom_nodes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sys.argv = ["fuzz", "--cpu", "--base-directory", str(folder), "--disable-all-custom-nodes"]
    sys.path.insert(0, str(comfy_root()))
    logging.disable(logging.CRITICAL)
    _declare_missing_operators()
    import comfy.options

    comfy.options.enable_args_parsing()
    # Before nodes.py puts another "utils" in front, as main.py does it.
    importlib.import_module("utils.install_util")
    import execution

    import nodes

    spec = importlib.util.spec_from_file_location(_PACK, REPO / "__init__.py", submodule_search_locations=[str(REPO)])
    assert spec and spec.loader
    pack = importlib.util.module_from_spec(spec)
    sys.modules[_PACK] = pack
    spec.loader.exec_module(pack)
    extension = asyncio.run(pack.comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node
    for name in ("1.png", "sub/1.png"):
        save_image(torch.zeros(1, 3, 16, 16), folder / "input" / name)
    _host.update(execution=execution, nodes=nodes, folder=folder)
    _host.update({name: importlib.import_module(f"{_PACK}.nodes.{name}") for name in ("folder_runs", "folder_files")})
    _host["captioner"] = importlib.import_module(f"{_PACK}.nodes.captioner")
    _host["choices"] = importlib.import_module(f"{_PACK}.nodes.control_choices")
    _host["batch"] = importlib.import_module(f"{_PACK}.eam_core.folder_batch")
    _host["error"] = importlib.import_module(f"{_PACK}.eam_core.errors").EAMError


def _declare_missing_operators() -> None:
    # The registry's torchvision describes two operators that it cannot load beside a CPU-only torch.
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _host["library"] = library


def workflow(data: bytes, folder: Path) -> None:
    """Let core check a graph, and what passes be read as the nodes read it."""
    if not _host:
        start(folder)
    try:
        prompt = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(prompt, dict) or not all(isinstance(node, dict) for node in prompt.values()):
        return  # core's server answers these itself
    try:
        valid, *_ = asyncio.run(_host["execution"].validate_prompt("fuzz", prompt, None))
    # What core trips over before it has asked a node is core's; it answers the page with an error.
    except Exception as error:
        if _in_pack(error):
            raise
        return
    if not valid:
        raise EAMError("core refused the graph")
    shutil.rmtree(_host["folder"] / "output", ignore_errors=True)
    refused = 0
    for key, node in prompt.items():
        try:
            _read(prompt, key, node)
        except _host["error"] as error:
            check_sentence(error)
            refused += 1
    if refused:
        raise EAMError(f"refused by {refused} nodes")


def _read(prompt: dict[str, Any], key: str, node: dict[str, Any]) -> None:
    """Do what a node does with its widgets, without the models and pictures that it needs besides."""
    kind, inputs = node.get("class_type"), node.get("inputs")
    if not isinstance(inputs, dict):
        return
    if kind == "EAM_LoadFolder":
        runs, files = _host["folder_runs"], _host["folder_files"]
        savers = runs.find_savers(prompt, key)
        runs.graph_mark(prompt)
        texts = [inputs.get(name, "") for name in ("folder", "output_folder", "pattern")]
        if all(isinstance(text, str) for text in texts):
            rules = {"pattern": texts[2], "subfolders": inputs.get("subfolders") is True, "overwrite": False}
            settings = files.batch_settings(texts[0], texts[1], savers, **rules)
            _host["batch"].Batch(settings)
    elif kind == "EAM_LoadCaptioner":
        source = inputs.get("source")
        if isinstance(source, str) and not source.startswith(("http://", "https://")):
            _host["captioner"].open_captioner(source, "")
    elif kind == "EAM_LoadModel" and isinstance(inputs.get("control"), str):
        _host["choices"].file_times(inputs["control"])


def _in_pack(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith((str(REPO / "nodes"), str(REPO / "eam_core"))):
            return True
        trace = trace.tb_next
    return False


TARGET = Target(name="workflow", run=workflow, good=samples.prompts, cases=strategies.broken_json)
