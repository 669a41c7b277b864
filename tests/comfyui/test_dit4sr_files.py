"""DiT4SR's files in a real ComfyUI: found, said what they are, in the example workflow, or refused."""

import io
import json
import shutil
from collections.abc import Iterator

import pytest
from comfy_host import REPO, ComfyServer, ExecutionError, graph_to_prompt
from dit4sr_golden import FOLDER, Golden, needs_golden
from dit4sr_graph import HOST, SHARDS, TOLERANCE, WHOLE, Graph, dit4sr_host, log_after, log_size, runs
from PIL import Image
from torch import Tensor

from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.presets import DIT4SR
from eam_core.weight_files import save_weights

pytestmark = needs_golden


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with dit4sr_host(tmp_path_factory.mktemp("host")) as running:
        yield running


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.load(HOST.format("v1"))


# Files


def test_a_set_of_shards_is_one_choice(host: ComfyServer) -> None:
    options = host.object_info()["EAM_LoadModel"]["input"]["required"]["control"]
    choices = options[1].get("options", options[0])
    assert [name for name in choices if "dit4sr" in name] == [SHARDS, WHOLE]


def test_licence_is_said_when_it_is_loaded_and_base_tensors_are_not_missed(host: ComfyServer) -> None:
    start = log_size(host)
    graph = Graph(host, control=WHOLE)
    graph.prompt[graph.loaded]["inputs"]["checkpoint"] = "base.safetensors"  # not loaded before with this control
    graph.latents(graph.link("Velocity", model=[graph.loaded, 0], file=str(FOLDER / HOST.format("v1"))))
    said = log_after(host, start)
    assert "DiT4SR's weights are for non-commercial use: its authors' Pi-Lab License 1.0" in said
    assert "unknown use" not in said


def test_example_workflow_runs_with_its_authors_settings(host: ComfyServer) -> None:
    """Only the files' names and the number of steps differ, and the text, as the stand-in knows no words."""
    workflow = json.loads((REPO / "example_workflows" / "dit4sr_upscale.json").read_text())
    prompt = graph_to_prompt(workflow, host.object_info())
    ids = {node["class_type"]: key for key, node in prompt.items()}
    sampler = prompt[ids["EAM_TiledSampler"]]["inputs"]
    assert {name: sampler[name] for name in ("steps", "cfg", "sampler_name", "scheduler", "start_sigma")} == {
        "steps": DIT4SR.steps,
        "cfg": DIT4SR.cfg_scale,
        "sampler_name": DIT4SR.sampler,
        "scheduler": DIT4SR.scheduler,
        "start_sigma": DIT4SR.sigma_start,
    }
    assert prompt[ids["EAM_ColorFix"]]["inputs"]["method"] == DIT4SR.color_fix
    texts = [key for key, node in prompt.items() if node["class_type"] == "CLIPTextEncode"]
    for key, side in zip(texts, ("positive", "negative"), strict=True):
        inputs = {"file": runs(), "text": f"untiled.text_{side}", "pooled": f"untiled.pooled_{side}"}
        prompt[key] = {"class_type": "FileCond", "inputs": inputs}
    prompt[ids["LoadImage"]]["inputs"]["image"] = "photo.png"
    prompt[ids["EAM_LoadModel"]]["inputs"] |= {"checkpoint": "embedded (tiny, no text)", "control": SHARDS}
    prompt["99"] = {"class_type": "UNETLoader", "inputs": {"unet_name": "base.safetensors", "weight_dtype": "default"}}
    prompt[ids["EAM_ApplyControl"]]["inputs"]["model"] = ["99", 0]
    sampler["steps"] = 2
    found = host.run(prompt)[ids["SaveImage"]]["images"][0]
    assert Image.open(io.BytesIO(host.fetch(found))).size == (160, 128)


def test_auto_finds_the_one_that_fits(host: ComfyServer, golden: Golden) -> None:
    whole = host.work_dir / "models" / "model_patches" / WHOLE
    away = whole.with_suffix(".away")

    def result() -> Tensor:
        graph = Graph(host)
        loaded = graph.add("EAM_LoadModel", checkpoint="base.safetensors", control="auto")
        graph.model = [loaded, 0]
        graph.prompt[graph.control[0]]["inputs"]["control"] = [loaded, 3]
        return graph.velocity()

    with pytest.raises(ExecutionError, match=r"found dit4sr_q\S*, dit4sr_r1\S*; choose one of them"):
        result()
    whole.rename(away)
    try:
        assert (result() - golden["output"]).abs().max() < TOLERANCE
    finally:
        away.rename(whole)


def test_other_bases_and_half_downloads_are_refused(host: ComfyServer) -> None:
    graph = Graph(host)
    with pytest.raises(ExecutionError, match=r"expected control weights for this base .* qk_norm True"):
        graph.model = [graph.loaded, 0]
        graph.velocity()
    params = MMDiTParams(depth=2, hidden_size=128, qk_norm=True, context_size=64, pooled_size=32, pos_embed_max_size=16)
    other = MMDiT(params)
    for tensor in other.state_dict().values():
        tensor.normal_()
    save_weights(host.work_dir / "models" / "diffusion_models" / "like_large.safetensors", other.state_dict())
    with pytest.raises(ExecutionError, match="dual_attention_blocks 0 to 0 instead of none"):
        Graph(host, base="like_large").velocity()
    folder = (host.work_dir / "models" / "model_patches" / SHARDS).parent
    broken = folder.parent.parent / "broken" / "transformer"
    shutil.copytree(folder, broken)
    shard = sorted(broken.glob("*.safetensors"))[1]
    shard.unlink()
    try:
        with pytest.raises(ExecutionError, match=r"expected the shard \S*00002-of-00003\S* .* found none"):
            Graph(host, control=SHARDS.replace("dit4sr_q", "broken")).velocity()
    finally:
        shutil.rmtree(broken.parent)
