"""The pack loads in a real ComfyUI, and the tools that drive it tell the truth."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_host import ComfyServer, ExecutionError, Interrupted, Progress, SetupError, comfy_root, graph_to_prompt
from PIL import Image

NODES = {
    *("EAM_LoadModel", "EAM_ControlPrompt", "EAM_ControlSettings", "EAM_ApplyControl", "EAM_ImagePrompt"),
    *("EAM_LoadCaptioner", "EAM_SubjectCaption", "EAM_EncodeTileCaptions"),
    *("EAM_TiledSampler", "EAM_ColorFix", "EAM_Degrade", "EAM_Compare", "EAM_Upscale"),
}


def stock_workflow(image: str) -> dict:
    """LoadImage -> ImageScaleBy -> SaveImage with a note, as the browser saves it."""
    return {
        "nodes": [
            {"id": 1, "type": "LoadImage", "mode": 0, "inputs": [], "widgets_values": [image, "image"]},
            {
                "id": 2,
                "type": "ImageScaleBy",
                "mode": 0,
                "inputs": [
                    {"name": "image", "type": "IMAGE", "link": 7},
                    {"name": "scale_by", "type": "FLOAT", "widget": {"name": "scale_by"}, "link": None},
                ],
                "widgets_values": ["bicubic", 2.0],
            },
            {
                "id": 3,
                "type": "SaveImage",
                "mode": 0,
                "inputs": [{"name": "images", "type": "IMAGE", "link": 8}],
                "widgets_values": ["scaled"],
            },
            {"id": 4, "type": "MarkdownNote", "mode": 0, "inputs": [], "widgets_values": ["# Read me"]},
        ],
        "links": [[7, 1, 0, 2, 0, "IMAGE"], [8, 2, 0, 3, 0, "IMAGE"]],
        "version": 0.4,
    }


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(path)
    return path


def test_pack_is_loaded(server: ComfyServer) -> None:
    log = server.start_up_log()
    loaded = re.search(r"([\d.]+) seconds( \(IMPORT FAILED\))?: \S*/ComfyUI-EAM$", log, re.MULTILINE)
    assert loaded, f"the pack is missing from the start-up log:\n{log}"
    assert loaded[2] is None, log


def test_pack_imports_nothing_until_comfyui_asks_for_its_nodes() -> None:
    door = Path(__file__).resolve().parents[2] / "__init__.py"
    code = f"import runpy, sys; before = set(sys.modules); runpy.run_path({str(door)!r})"
    code += (
        "; print({name.split('.')[0] for name in set(sys.modules) - before} & {'torch', 'nodes', 'eam_core', 'comfy'})"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_node_appears_under_eam(server: ComfyServer) -> None:
    nodes = server.object_info()
    assert set(nodes) >= NODES
    assert {name: nodes[name]["category"].split("/")[0] for name in NODES} == dict.fromkeys(NODES, "EAM")


def test_saved_workflow_becomes_a_prompt_that_runs(server: ComfyServer, photo: Path) -> None:
    prompt = graph_to_prompt(stock_workflow(server.upload_image(photo)), server.object_info())
    assert prompt == {
        "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "2": {
            "class_type": "ImageScaleBy",
            "inputs": {"image": ["1", 0], "upscale_method": "bicubic", "scale_by": 2.0},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "scaled"}},
    }
    outputs = server.run(prompt)
    picture = Image.open(io.BytesIO(server.fetch(outputs["3"]["images"][0])))
    assert picture.size == (48, 32)


def test_seed_helper_widget_is_left_out(server: ComfyServer) -> None:
    values = [7, "randomize", 4, 3.5, "euler", "simple", 1.0]
    workflow = {"nodes": [{"id": 1, "type": "KSampler", "inputs": [], "widgets_values": values}], "links": []}
    inputs = graph_to_prompt(workflow, server.object_info())["1"]["inputs"]
    assert inputs == {
        "seed": 7, "steps": 4, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "NoSuchNode"}, "NoSuchNode"),
        ({"mode": 4}, "bypassed ImageScaleBy"),
        ({"widgets_values": ["bicubic"]}, "scale_by of ImageScaleBy"),
        ({"widgets_values": ["bicubic", 2.0, 3.0]}, "ImageScaleBy, got also"),
    ],
)
def test_unusable_workflow_is_refused(server: ComfyServer, change: dict, message: str) -> None:
    workflow = stock_workflow("photo.png")
    workflow["nodes"][1].update(change)
    with pytest.raises(ValueError, match=message):
        graph_to_prompt(workflow, server.object_info())


def test_invalid_and_failing_prompts_name_the_node(server: ComfyServer, photo: Path) -> None:
    prompt = graph_to_prompt(stock_workflow(server.upload_image(photo)), server.object_info())
    prompt["2"]["inputs"]["scale_by"] = 1000.0
    with pytest.raises(ExecutionError, match=r"ImageScaleBy: .*scale_by"):
        server.run(prompt)
    prompt["2"]["inputs"]["scale_by"] = 0.01
    with pytest.raises(ExecutionError, match=r"^ImageScaleBy: "):
        server.run(prompt)


def test_interrupt_ends_the_run_and_the_next_one_works(server: ComfyServer) -> None:
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 4, "color": 255}},
        "2": {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 15, "sigma": 5.0}},
        "3": {"class_type": "ImageBlur", "inputs": {"image": ["2", 0], "blur_radius": 15, "sigma": 5.0}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    seen = []

    def stop_at_first_blur(progress: Progress) -> None:
        seen.append(progress.node_type)
        if progress.node_id == "2":
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(prompt, stop_at_first_blur)
    assert "PreviewImage" not in seen
    prompt["1"]["inputs"] |= {"width": 64, "height": 64, "batch_size": 1}
    assert len(server.run(prompt, lambda progress: seen.append(progress.node_type))["4"]["images"]) == 1
    assert seen[-1] == "PreviewImage"


@pytest.mark.parametrize("content", [[], ["main.py"]])
def test_wrong_comfyui_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="expected a ComfyUI folder"):
        comfy_root()
