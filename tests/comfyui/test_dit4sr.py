"""DiT4SR in a real ComfyUI: its authors' numbers through a patched MODEL, with what users put around it."""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import REPO, ComfyServer, ExecutionError, graph_to_prompt
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from eam_core.checkpoint import CHECKPOINT_PREFIX, build_autoencoder
from eam_core.denoiser import Text
from eam_core.images import load_image
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.pipeline import Restorer
from eam_core.presets import DIT4SR, EMBEDDED
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import read_weights, save_weights

sys.path.append(str(Path(__file__).resolve().parents[1] / "core"))
from dit4sr_golden import FOLDER, FORWARD, Golden, save_folder

pytestmark = pytest.mark.skipif(not FORWARD, reason="no outputs of the authors' code; set EAM_GOLDEN to their folder")

TOLERANCE = 1e-4
HOST, RUNS = "dit4sr_{}_host.safetensors", "dit4sr_{}_sampling.safetensors"
SHARDS = "dit4sr_q/transformer/diffusion_pytorch_model.safetensors.index.json"
WHOLE = "dit4sr_r1/transformer/diffusion_pytorch_model.safetensors"
RULES = {"v1": "first", "r1": "r1"}
QKV = "joint_blocks.0.x_block.attn.qkv"
RANK = 4


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "custom_nodes").mkdir()
    shutil.copy(Path(__file__).with_name("dit4sr_pack.py"), folder / "custom_nodes")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with ComfyServer(folder) as running:
            save_models(folder / "models")
            coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(folder / "photo.png")
            running.upload_image(folder / "photo.png")
            yield running


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.load(HOST.format("v1"))


def save_models(models: Path) -> None:
    """Write the authors' small random weights as a base in SD3's layout and as published folders."""
    weights, base = Golden.load(HOST.format("v1")).weights, Golden.load(HOST.format("v1")).base
    for name in ("checkpoints", "diffusion_models", "loras"):
        (models / name).mkdir(parents=True, exist_ok=True)
    save_folder((models / "model_patches" / SHARDS).parent, weights, 3)
    save_folder((models / "model_patches" / WHOLE).parent, weights)
    save_weights(models / "diffusion_models" / "base.safetensors", base)
    shutil.copy(models / "model_patches" / WHOLE, models / "diffusion_models" / "dit4sr.safetensors")
    torch.manual_seed(0)
    tuned = {key: value + 0.05 * value.std() * torch.randn(value.shape) for key, value in base.items()}
    save_weights(models / "diffusion_models" / "tuned.safetensors", tuned)
    save_weights(
        models / "checkpoints" / "base.safetensors", {CHECKPOINT_PREFIX + key: value for key, value in base.items()}
    )
    lora = {"lora_up.weight": torch.randn(384, RANK), "lora_down.weight": torch.randn(RANK, 128)}
    save_file(
        {f"diffusion_model.{QKV}.{key}": 0.2 * value for key, value in lora.items()},
        models / "loras" / "lora.safetensors",
    )


class Graph:
    """A prompt in the making: a base of choice with the control on a picture."""

    def __init__(self, host: ComfyServer, base: str = "base", control: str = SHARDS, rule: str = "first") -> None:
        self.host, self.prompt = host, {}
        self.loaded = self.add("EAM_LoadModel", checkpoint="embedded (tiny, no text)", control=control)
        self.model = self.link("UNETLoader", unet_name=f"{base}.safetensors", weight_dtype="default")
        self.control = self.link("EAM_ControlSettings", control=[self.loaded, 3], key_rule=rule, conv_scale=1.2)

    def add(self, kind: str, **inputs: Any) -> str:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        return node

    def link(self, kind: str, **inputs: Any) -> Any:
        return [self.add(kind, **inputs), 0]

    def text(self, side: str, run: str = "untiled") -> Any:
        return self.link("FileCond", file=runs(), text=f"{run}.text_{side}", pooled=f"{run}.pooled_{side}")

    def apply(self, **changes: Any) -> str:
        image = self.link("LoadImage", image="photo.png")
        numbers = {"scale": 4.0, "control_scale": 1.0, "start": 0.0, "end": 1.0}
        links = {"model": self.model, "vae": [self.loaded, 2], "control": self.control, "image": image}
        links |= {side: self.text(side) for side in ("positive", "negative") if side not in changes}
        self.applied = self.add("EAM_ApplyControl", **links | numbers | changes)
        return self.applied

    def velocity(self, variant: str = "v1", model: Any = None, **changes: Any) -> Tensor:
        model = model or [self.apply(**changes), 0]
        return self.latents(self.link("Velocity", model=model, file=str(FOLDER / HOST.format(variant))))

    def tiled(self, model: Any = None, **changes: Any) -> Any:
        links = {"model": model or [self.applied, 0], "latent": [self.applied, 3]}
        links |= {"positive": [self.applied, 1], "negative": [self.applied, 2]}
        numbers: dict[str, Any] = {"seed": 3, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"}
        numbers |= {"start_sigma": 1.0, "fidelity": 0.0, "tile": 96, "overlap": 32, "tile_batch": 1}
        return self.link("EAM_TiledSampler", **links | numbers | changes)

    def latents(self, latent: Any) -> Tensor:
        saved = self.add("SaveLatent", samples=latent, filename_prefix="test")
        found = self.host.run(self.prompt)[saved]["latents"][0]
        return load_file(self.host.work_dir / "output" / found["subfolder"] / found["filename"])["latent_tensor"]


def runs(variant: str = "v1") -> str:
    return str(FOLDER / RUNS.format(variant))


def log_after(host: ComfyServer, start: int) -> str:
    return host.log_path.read_text(errors="replace")[start:]


def log_size(host: ComfyServer) -> int:
    return len(host.log_path.read_text(errors="replace"))


def library(golden: Golden, base: dict[str, Tensor]) -> Tensor:
    """The library's prediction on another base."""
    model = golden.model()
    model.base.load_state_dict(base)
    with torch.no_grad():
        return model(*golden.inputs)


# Numbers


@pytest.mark.parametrize("control", [SHARDS, WHOLE], ids=["shards", "one file"])
@pytest.mark.parametrize("variant", RULES)
def test_patched_model_predicts_what_its_authors_code_does(host: ComfyServer, variant: str, control: str) -> None:
    expected = Golden.load(HOST.format(variant))["output"]
    got = Graph(host, control=control, rule=RULES[variant]).velocity(variant)
    assert expected.std() > 0.5
    assert (got - expected).abs().max() < TOLERANCE


def test_the_rule_is_told_by_the_weights_unless_set(host: ComfyServer) -> None:
    expected = Golden.load(HOST.format("r1"))["output"]
    start = log_size(host)
    assert (Graph(host, rule="as loaded").velocity("r1") - expected).abs().max() < TOLERANCE
    said = log_after(host, start)
    assert "dit4sr_q/transformer: LR keys by the rule of the revised release (dit4sr_r1)" in said


def test_control_scale_zero_is_the_base_and_other_values_mean_nothing(host: ComfyServer, golden: Golden) -> None:
    assert (Graph(host).velocity(control_scale=0.0) - golden["output_base"]).abs().max() < TOLERANCE
    start = log_size(host)
    assert (Graph(host).velocity(control_scale=0.5) - golden["output"]).abs().max() < TOLERANCE
    assert log_after(host, start).count("control_scale has no effect except at 0") == 1


def test_whole_run_with_guidance_is_their_pipelines(host: ComfyServer) -> None:
    """Core's sampler and scheduler, positive and negative in one batch, noise and LR latents from the file."""
    graph = Graph(host)
    applied = graph.apply()
    place = {"file": runs(), "key": "untiled.lr_latent"}
    slots = {"positive": 1, "negative": 2}
    sides = {name: graph.link("FileLR", conditioning=[applied, slot], **place) for name, slot in slots.items()}
    steps = graph.link("BasicScheduler", model=[applied, 0], scheduler="normal", steps=4, denoise=1.0)
    out = graph.link(
        "SamplerCustomAdvanced",
        noise=graph.link("FileNoise", file=runs(), key="untiled.noise"),
        guider=graph.link("CFGGuider", model=[applied, 0], cfg=8.0, **sides),
        sampler=graph.link("KSamplerSelect", sampler_name="euler"),
        sigmas=steps,
        latent_image=graph.link("EmptySD3LatentImage", width=128, height=128, batch_size=1),
    )
    expected = load_file(runs())["untiled.output"]
    assert ((graph.latents(out) - 0.0609) * 1.5305 - expected).abs().max() < 1e-3 * expected.std()


def test_graph_and_library_make_the_same_picture(host: ComfyServer, golden: Golden) -> None:
    """Non-square, several tiles, guidance, the settings of its authors where they matter."""
    graph = Graph(host)
    graph.apply()
    got = graph.latents(graph.tiled())

    class FileText:
        def encode(self, prompts: list[str]) -> list[Text]:
            given = load_file(runs())
            sides = ("positive", "negative")
            return [Text(given[f"untiled.text_{side}"], given[f"untiled.pooled_{side}"]) for side in sides]

    assert EMBEDDED.autoencoder
    autoencoder = build_autoencoder(read_weights(EMBEDDED.autoencoder), "autoencoder").float()
    restorer = Restorer(model=golden.model(), autoencoder=autoencoder, text=FileText(), spec=DIT4SR)
    found = []
    restorer.decode = lambda latents: found.append(latents) or torch.zeros(1, 3, 128, 160)
    config = RestoreConfig.from_spec(DIT4SR, scale=4, seed=3, steps=2, cfg_scale=2.0, tile=96, overlap=32)
    restorer.restore(load_image(host.work_dir / "photo.png").rgb, config)
    assert got.shape == found[0].shape == (1, 16, 16, 20)
    assert ((got - 0.0609) * 1.5305 - found[0]).abs().max() < 1e-3 * found[0].std()


# The base stays the user's


def test_lora_on_the_base_acts(host: ComfyServer, golden: Golden) -> None:
    lora = load_file(host.work_dir / "models" / "loras" / "lora.safetensors")
    up, down = (lora[f"diffusion_model.{QKV}.lora_{end}.weight"] for end in ("up", "down"))
    for where in ("before", "after"):
        graph = Graph(host)
        named = {"lora_name": "lora.safetensors", "strength_model": 1.0}
        if where == "before":
            graph.model = graph.link("LoraLoaderModelOnly", model=graph.model, **named)
            got = graph.velocity()
        else:
            got = graph.velocity(model=graph.link("LoraLoaderModelOnly", model=[graph.apply(), 0], **named))
        merged = golden.base[f"{QKV}.weight"] + up @ down
        assert (got - library(golden, golden.base | {f"{QKV}.weight": merged})).abs().max() < TOLERANCE
        assert (got - golden["output"]).abs().max() > 0.01
    assert (Graph(host).velocity() - golden["output"]).abs().max() < TOLERANCE, "the LoRA stayed behind"


def test_base_in_low_precision_acts_as_it_is(host: ComfyServer, golden: Golden) -> None:
    graph = Graph(host)
    graph.prompt[graph.model[0]]["inputs"]["weight_dtype"] = "fp8_e4m3fn"
    rounded = {key: value.to(torch.float8_e4m3fn).float() for key, value in golden.base.items()}
    start = log_size(host)
    got = graph.velocity()
    assert (got - library(golden, rounded)).abs().max() < TOLERANCE
    assert (got - golden["output"]).abs().max() > 0.01
    assert "comes with a base of its own" not in log_after(host, start)


def test_the_published_file_may_be_the_base_too(host: ComfyServer, golden: Golden) -> None:
    assert (Graph(host, base="dit4sr").velocity() - golden["output"]).abs().max() < TOLERANCE


def test_a_finetuned_base_is_used_and_said(host: ComfyServer, golden: Golden) -> None:
    start = log_size(host)
    got = Graph(host, base="tuned").velocity()
    tuned = read_weights(host.work_dir / "models" / "diffusion_models" / "tuned.safetensors")
    assert (got - library(golden, tuned)).abs().max() < TOLERANCE
    assert log_after(host, start).count("comes with a base of its own that differs from the one in use") == 1


# Company


def test_tiles_in_one_batch_are_tiles_one_by_one(host: ComfyServer) -> None:
    def result(**changes: Any) -> Tensor:
        graph = Graph(host)
        graph.apply()
        return graph.latents(graph.tiled(**changes))

    alone = result()
    assert torch.allclose(result(tile_batch=4), alone, atol=1e-4)
    assert not torch.allclose(result(cfg=1.0), alone, atol=1e-2)


def test_two_conditionings_are_averaged(host: ComfyServer) -> None:
    def result(*sides: str) -> Tensor:
        graph = Graph(host)
        texts = [graph.text(side) for side in sides]
        positive = texts[0]
        if len(texts) == 2:
            positive = graph.link("ConditioningCombine", conditioning_1=texts[0], conditioning_2=texts[1])
        graph.apply(positive=positive)
        return graph.latents(graph.tiled(steps=1, cfg=1.0))

    one, other, both = result("positive"), result("negative"), result("positive", "negative")
    assert not torch.allclose(one, other, atol=1e-2)
    assert torch.allclose(both, (one + other) / 2, atol=1e-4)


def test_areas_crop_the_lr_latents(host: ComfyServer) -> None:
    graph = Graph(host)
    place = {"width": 64, "height": 96, "x": 32, "y": 16, "strength": 2.0}
    area = graph.link("ConditioningSetArea", conditioning=graph.text("negative"), **place)
    graph.apply(positive=graph.link("ConditioningCombine", conditioning_1=graph.text("positive"), conditioning_2=area))
    links = {"positive": [graph.applied, 1], "negative": [graph.applied, 2], "latent_image": [graph.applied, 3]}
    numbers = {"seed": 5, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    sampled = graph.link("KSampler", model=[graph.applied, 0], **links, **numbers)
    assert graph.latents(sampled).isfinite().all()


def test_skipped_layers_change_the_result(host: ComfyServer) -> None:
    def result(layers: str) -> Tensor:
        graph = Graph(host)
        numbers = {"layers": layers, "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0}
        model = graph.link("SkipLayerGuidanceSD3", model=[graph.apply(), 0], **numbers)
        return graph.latents(graph.tiled(model=model))

    first, second = result("0"), result("1")
    assert first.isfinite().all() and not torch.allclose(first, second, atol=1e-2)


def test_another_nodes_patch_stands_around_it_or_is_said_to_leave_it_out(host: ComfyServer, golden: Golden) -> None:
    def with_patch(kind: str) -> tuple[Tensor, str]:
        graph, start = Graph(host), log_size(host)
        graph.model = graph.link("OthersPatch", model=graph.model, does=kind)
        return graph.velocity(), log_after(host, start)

    model = golden.model()

    class Around:
        """The patch by hand, around the control's own block 0."""

        def __init__(self, guest: Any, skip: bool):
            self.guest, self.skip, self.state = guest, skip, ()

        def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Any) -> tuple[Tensor, Tensor]:
            if index == 0 and self.skip:
                return img, txt
            return self.guest.run_block(index, 1.5 * img if index == 0 else img, txt, vec, block)

    for kind in ("change", "skip"):
        model.wrap_guest = lambda guest, skip=kind == "skip": Around(guest, skip)
        with torch.no_grad():
            expected = model(*golden.inputs)
        got, said = with_patch(kind)
        assert (got - expected).abs().max() < TOLERANCE
        assert said.count("patch computes or skips block 0 by itself") == (kind == "skip")


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
