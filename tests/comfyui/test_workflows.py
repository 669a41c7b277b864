"""The example workflows: complete, run by a real ComfyUI on the bundled photo, restorations, with thumbnails."""

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from caption_endpoint import StandInEndpoint
from comfy_host import REPO, ComfyServer, ExecutionError, graph_to_prompt
from PIL import Image
from torch import Tensor

from eam_core.checkpoint import build_mmdit
from eam_core.images import load_image, resize
from eam_core.model.control_init import init_controlnet
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.presets import EMBEDDED
from eam_core.quality import psnr
from eam_core.weight_files import read_weights, save_weights

FOLDER = REPO / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
OURS = {"eam_quick_start", "eam_upscale", "eam_ksampler", "eam_tiled_4k", "eam_tile_captions", "eam_folder"}
OURS |= {"eam_controlnet", "eam_image_prompt", "dit4sr_upscale", "tsdsr_upscale"}
OLD = Path(__file__).with_name("data") / "eam_upscale_0_5_0.json"
EMBEDDED_CHOICE = "embedded (tiny, no text)"
# Files that people bring; all else must be there.
BROUGHT = {"image", "checkpoint", "control", "clip_name"}
PHOTO, WIDTH, HEIGHT = "workflow_photo.png", 64, 48
Json = dict[str, Any]


@pytest.fixture(scope="module")
def info(server: ComfyServer) -> Json:
    return server.object_info()


@pytest.fixture(scope="module")
def photo(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Upload a part of the bundled photo; return it, [1, 3, HEIGHT, WIDTH]."""
    path = tmp_path_factory.mktemp("photo") / PHOTO
    Image.open(REPO / "eam_core/assets/sample_lr.png").crop((50, 40, 50 + WIDTH, 40 + HEIGHT)).save(path)
    server.upload_image(path)
    return load_image(path).rgb


@pytest.fixture
def endpoint() -> Iterator[StandInEndpoint]:
    with StandInEndpoint("A dandelion in the evening sun.") as running:
        yield running


def saved(name: str) -> Json:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def make_prompt(workflow: Json, info: Json, changes: Json | None = None) -> Json:
    """Return the prompt with the bundled photo, and with changes to the inputs of kinds of nodes."""
    prompt = graph_to_prompt(workflow, info)
    changes = {"LoadImage": {"image": PHOTO}, "EAM_LoadFolder": {"pattern": PHOTO, "go_on": False}} | (changes or {})
    for node in prompt.values():
        node["inputs"] |= changes.get(node["class_type"], {})
    return prompt


def output_of(prompt: Json, outputs: Json, kind: str) -> Json:
    (found,) = (outputs[key] for key, node in prompt.items() if node["class_type"] == kind)
    return found


def result(server: ComfyServer, prompt: Json) -> Tensor:
    """Run a prompt; return what it saved, [1, 3, H, W] in [0, 1]."""
    outputs = server.run(prompt)
    kind = "SaveImage" if any(node["class_type"] == "SaveImage" for node in prompt.values()) else "EAM_SaveFolder"
    (found,) = output_of(prompt, outputs, kind)["images"]
    pixels = Image.open(io.BytesIO(server.fetch(found))).convert("RGB")
    values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(pixels.height, pixels.width, 3)
    return values.permute(2, 0, 1)[None].float() / 255


def assert_restores(restored: Tensor, photo: Tensor, scale: float, faithful: float = 28.0) -> None:
    """Check the size, that the result reduced is the photo, and that it is more than the photo enlarged.

    Args:
        faithful: PSNR in dB that the reduced result has at least; another photo has about 14, noise about 9.
    """
    assert restored.shape == (1, 3, round(HEIGHT * scale), round(WIDTH * scale))
    assert psnr(resize(restored, (HEIGHT, WIDTH)), photo).item() > faithful
    enlarged = resize(photo, tuple(restored.shape[-2:]))
    assert (restored - enlarged).abs().mean() > 0.01
    # It has edges that the enlarged photo lacks.
    assert restored.diff(dim=-1).abs().mean() > 1.1 * enlarged.diff(dim=-1).abs().mean()


# Files


def test_all_workflows_are_here() -> None:
    assert set(NAMES) == OURS


@pytest.mark.parametrize("name", NAMES)
def test_workflow_fits_the_nodes(name: str, info: Json) -> None:
    """Inputs and types are known, no value is missing, and each is in its range or list."""
    workflow = saved(name)
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    assert list(kinds.values()).count("MarkdownNote") == 1
    for node_id, node in graph_to_prompt(workflow, info).items():
        kind = node["class_type"]
        inputs = {
            key: spec for part in ("required", "optional") for key, spec in info[kind]["input"].get(part, {}).items()
        }
        assert set(node["inputs"]) <= set(inputs), kind
        assert set(info[kind]["input"].get("required", {})) <= set(node["inputs"]), kind
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                source = kinds[int(value[0])]
                assert info[source]["output"][value[1]] == inputs[key][0], f"{source} -> {kind}.{key} of {node_id}"
            else:
                check_value(kind, key, value, inputs[key])


def check_value(kind: str, key: str, value: Any, spec: list[Any]) -> None:
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    if choices is not None:
        assert value in choices or key in BROUGHT, f"{kind}.{key}: {value!r} is not in {choices}"
    elif spec[0] in ("INT", "FLOAT"):
        assert isinstance(value, (int, float)) and not isinstance(value, bool), f"{kind}.{key}: {value!r}"
        assert options["min"] <= value <= options["max"], f"{kind}.{key}: {value!r}"
    else:
        assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[spec[0]]), f"{kind}.{key}: {value!r}"


def test_files_are_what_the_script_writes(info: Json) -> None:
    """Else a change by hand would be lost, or a change of the script was not written."""
    from workflows import build

    written = build(info)
    assert set(written) == OURS
    for name, workflow in written.items():
        assert saved(name) == workflow, f"{name}: run tools/workflows.py"


def test_every_workflow_has_a_thumbnail() -> None:
    for name in NAMES:
        file = FOLDER / f"{name}.jpg"
        assert Image.open(file).size == (384, 384)
        assert file.stat().st_size < 40_000
    assert len({(FOLDER / f"{name}.jpg").read_bytes() for name in NAMES}) == len(NAMES)


# Runs


def test_quick_start(server: ComfyServer, info: Json, photo: Tensor) -> None:
    prompt = make_prompt(saved("eam_quick_start"), info)
    restored = result(server, prompt)
    assert_restores(restored, photo, 4)
    outputs = server.run(prompt)
    (pair,) = output_of(prompt, outputs, "EAM_Compare")["eam_compare"]
    assert pair["b_size"] == [4 * WIDTH, 4 * HEIGHT] and 15 < pair["psnr"] < 45
    (text,) = output_of(prompt, outputs, "EAM_Report")["text"]
    error = (resize(restored, (HEIGHT, WIDTH)) - photo).square().mean().item()  # in RGB, unlike core's PSNR
    assert (said := re.search(r"PSNR ([\d.]+) dB", text))
    assert float(said[1]) == pytest.approx(-10 * math.log10(error), abs=0.1)


def test_expert_and_quick_start_make_the_same_picture(server: ComfyServer, info: Json, photo: Tensor) -> None:
    expert = result(server, make_prompt(saved("eam_upscale"), info))
    assert_restores(expert, photo, 4)
    assert torch.equal(expert, result(server, make_prompt(saved("eam_quick_start"), info)))


def test_workflow_of_an_older_version(server: ComfyServer, info: Json, photo: Tensor) -> None:
    old = make_prompt(json.loads(OLD.read_text(encoding="utf-8")), info)
    assert torch.equal(result(server, old), result(server, make_prompt(saved("eam_upscale"), info)))


def test_ksampler(server: ComfyServer, info: Json, photo: Tensor) -> None:
    """One tile covers so small a picture, so both samplers make the same."""
    changes = {"ImageScaleToMaxDimension": {"largest_size": WIDTH}}
    sampled = result(server, make_prompt(saved("eam_ksampler"), info, changes))
    assert_restores(sampled, photo, 4)
    tiled = result(server, make_prompt(saved("eam_upscale"), info))
    assert (sampled - tiled).abs().max() <= 2 / 255


def test_tiled_4k(server: ComfyServer, info: Json, photo: Tensor) -> None:
    workflow = saved("eam_tiled_4k")
    (scale,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "EAM_ApplyControl")
    assert 768 * scale >= 3840  # ComfyUI's example picture
    # Tiles so small that this photo has several of both kinds.
    changes = {"EAM_TiledSampler": {"tile": 128, "overlap": 32}, "VAEDecodeTiled": {"tile_size": 128, "overlap": 64}}
    assert_restores(result(server, make_prompt(workflow, info, changes)), photo, scale)


def test_tile_captions(server: ComfyServer, info: Json, photo: Tensor, endpoint: StandInEndpoint) -> None:
    changes = {"EAM_LoadCaptioner": {"source": endpoint.url}, "EAM_SubjectCaption": {"tile": 192, "overlap": 64}}
    prompt = make_prompt(saved("eam_tile_captions"), info, {name: {**values} for name, values in changes.items()})
    for node in prompt.values():
        if node["class_type"] == "EAM_SubjectCaption":
            assert node["inputs"]["tile_captions"] is True and node["inputs"]["caption"] == ""
    start = server.log_path.stat().st_size
    restored = result(server, prompt)
    assert len(endpoint.asked) == 3  # the photo and its two tiles
    assert_restores(restored, photo, 4)
    said = server.log_path.read_bytes()[start:].decode(errors="replace")
    assert "the embedded model knows no text; tile captions have no effect" in said
    # No text reaches the embedded model, so the picture is the one without.
    plain = result(server, make_prompt(saved("eam_upscale"), info))
    assert (restored - plain).abs().max() <= 1 / 255


def test_folder(server: ComfyServer, info: Json, photo: Tensor) -> None:
    restored = result(server, make_prompt(saved("eam_folder"), info))
    assert_restores(restored, photo, 4)
    written = server.work_dir / "output" / "eam_folder" / PHOTO
    assert torch.equal(load_image(written).rgb, restored)
    lines = [json.loads(line) for line in (written.parent / "eam_folder.jsonl").read_text().splitlines()]
    assert [line["files"] for line in lines if line["state"] == "done"] == [[PHOTO]]


@pytest.fixture
def controlnet(models: Path) -> Iterator[Path]:
    """A random-weight stand-in for a trained ControlNet under the workflow's name."""
    assert EMBEDDED.base
    base = build_mmdit(read_weights(EMBEDDED.base), "base").float()
    control = ControlNet(ControlNetParams.for_base(base.params, 2))
    init_controlnet(control, base.state_dict())
    torch.manual_seed(0)
    for module, std in ((control.lr_embedder, 0.3), (control.zero_linears, 0.02)):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=std)
    path = models / "model_patches" / "controlnet.safetensors"
    save_weights(path, control.state_dict())
    yield path
    path.unlink()


def test_controlnet(server: ComfyServer, info: Json, photo: Tensor, controlnet: Path) -> None:
    """With SD3's settings but fewer steps, as the embedded base stands for SD3 and knows no more."""
    loaded = {"EAM_LoadModel": {"checkpoint": EMBEDDED_CHOICE, "control": controlnet.name}}
    named = saved("eam_controlnet")
    assert any(controlnet.name in node["widgets_values"] for node in named["nodes"])

    def made(control_scale: float) -> Tensor:
        changes = {"EAM_TiledSampler": {"steps": 2}, "EAM_ApplyControl": {"control_scale": control_scale}}
        return result(server, make_prompt(named, info, loaded | changes))

    controlled, alone = made(1.0), made(0.0)
    assert controlled.shape == (1, 3, 4 * HEIGHT, 4 * WIDTH)
    assert (controlled - alone).abs().mean() > 0.01
    # The weights are random, so only the color fix ties the picture to the photo.
    assert psnr(resize(controlled, (HEIGHT // 4, WIDTH // 4)), resize(photo, (HEIGHT // 4, WIDTH // 4))).item() > 20


@pytest.mark.parametrize("name", ["eam_controlnet", "eam_image_prompt", "dit4sr_upscale", "tsdsr_upscale"])
def test_missing_weights_are_named(server: ComfyServer, info: Json, photo: Tensor, name: str) -> None:
    """In ComfyUI's own words, some of them before anything runs; the note says where the files belong."""
    workflow = saved(name)
    prompt = make_prompt(workflow, info)
    files = [node["inputs"][key] for node in prompt.values() for key in node["inputs"].keys() & BROUGHT - {"image"}]
    named = [file for file in files if isinstance(file, str)]
    with pytest.raises(ExecutionError, match=r"not in list|not found") as refused:
        server.run(prompt)
    assert any(file in str(refused.value) for file in named)
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert "`models/checkpoints`" in note and "`models/model_patches" in note
