"""A ControlNet in a real ComfyUI: the same nodes, samplers and company as Psi-DiT, and the library's picture."""

import json
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

from eam_core.checkpoint import build_mmdit
from eam_core.images import load_image, resize
from eam_core.model.control_init import init_controlnet
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import read_weights, save_weights

TOLERANCE = 2 / 255  # the graph's result is a PNG; sums run in another order
FRESH, TRAINED, FOREIGN = "controlnet_fresh.safetensors", "controlnet.safetensors", "controlnet_foreign.safetensors"
APPLY, SAMPLER = "EAM_ApplyControl", "EAM_TiledSampler"


@pytest.fixture(scope="module", autouse=True)
def patches(server: ComfyServer) -> Iterator[Path]:
    """The folder of control weights with ControlNets of two copied blocks: fresh, random, and for another base."""
    folder = server.work_dir / "models" / "model_patches"
    folder.mkdir(parents=True, exist_ok=True)
    assert EMBEDDED.base
    base = build_mmdit(read_weights(EMBEDDED.base), "base").float()
    control = ControlNet(ControlNetParams.for_base(base.params, 2))
    init_controlnet(control, base.state_dict())
    save_weights(folder / FRESH, control.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        for module, std in ((control.lr_embedder, 0.3), (control.zero_linears, 0.02)):
            for parameter in module.parameters():
                parameter.normal_(std=std)
    save_weights(folder / TRAINED, control.state_dict())
    foreign = ControlNet(ControlNetParams(depth=2, hidden_size=128, num_blocks=1))
    save_weights(folder / FOREIGN, foreign.state_dict())
    yield folder
    for name in (FRESH, TRAINED, FOREIGN):
        (folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def source(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "controlled.png"
    pixels = resize(load_image(REPO / "eam_core" / "assets" / "sample_lr.png").rgb, (72, 96))[0].permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(path)
    server.upload_image(path)
    return path


class Workflow:
    """The example workflow with a control of choice."""

    def __init__(self, server: ComfyServer, source: Path, control: str) -> None:
        self.server = server
        workflow = json.loads((REPO / "example_workflows/eam_upscale.json").read_text())
        self.prompt = graph_to_prompt(workflow, server.object_info())
        self.change("LoadImage", image=source.name)
        self.change("EAM_LoadModel", control=control)
        self.change(SAMPLER, seed=5)

    def id(self, kind: str) -> str:
        return next(key for key, node in self.prompt.items() if node["class_type"] == kind)

    def change(self, kind: str, **inputs: Any) -> None:
        self.prompt[self.id(kind)]["inputs"] |= inputs

    def add(self, kind: str, **inputs: Any) -> list[Any]:
        key = str(1 + max(map(int, self.prompt)))
        self.prompt[key] = {"class_type": kind, "inputs": inputs}
        return [key, 0]

    def use_core_sampler(self, **changes: Any) -> None:
        """Put core's KSampler in the place of the tiled one."""
        node = self.prompt[self.id(SAMPLER)]
        links = {"latent_image": node["inputs"]["latent"]} | {
            name: node["inputs"][name] for name in ("model", "positive", "negative")
        }
        numbers = {
            "seed": 5,
            "steps": 2,
            "cfg": 2.0,
            "sampler_name": "euler",
            "scheduler": "sgm_uniform",
            "denoise": 1.0,
        }
        node |= {"class_type": "KSampler", "inputs": links | numbers | changes}

    def latents(self) -> Tensor:
        """Run up to the sampler."""
        kind = SAMPLER if any(node["class_type"] == SAMPLER for node in self.prompt.values()) else "KSampler"
        for key in [key for key, node in self.prompt.items() if node["class_type"] in ("SaveImage", "EAM_Compare")]:
            del self.prompt[key]
        saved = self.add("SaveLatent", samples=[self.id(kind), 0], filename_prefix="controlnet")[0]
        found = self.server.run(self.prompt)[saved]["latents"][0]
        return load_file(self.server.work_dir / "output" / found["subfolder"] / found["filename"])["latent_tensor"]


def test_graph_and_library_make_the_same_picture(
    server: ComfyServer, source: Path, patches: Path, tmp_path: Path
) -> None:
    workflow = Workflow(server, source, TRAINED)
    outputs = server.run(workflow.prompt)
    result = tmp_path / "graph.png"
    result.write_bytes(server.fetch(outputs[workflow.id("SaveImage")]["images"][0]))
    from_graph = load_image(result).rgb

    assert EMBEDDED.base and EMBEDDED.autoencoder
    config = RestoreConfig.from_spec(EMBEDDED, scale=4, seed=5)

    def restored(control: str) -> Tensor:
        files = {"base": EMBEDDED.base, "control": patches / control, "autoencoder": EMBEDDED.autoencoder}
        return Restorer.from_files(**files).restore(load_image(source).rgb, config)

    from_library = restored(TRAINED)
    assert from_graph.shape == from_library.shape == (1, 3, 288, 384)
    assert np.abs((from_graph - from_library).numpy()).max() < TOLERANCE
    assert np.abs((restored(FRESH) - from_library).numpy()).max() > 10 * TOLERANCE, "the control does nothing"


def test_fresh_controlnet_is_the_base_exactly_in_cores_sampler(server: ComfyServer, source: Path) -> None:
    def result(control: str, **changes: Any) -> Tensor:
        workflow = Workflow(server, source, control)
        workflow.change(APPLY, **changes)
        workflow.use_core_sampler()
        return workflow.latents()

    workflow = Workflow(server, source, FRESH)
    workflow.use_core_sampler(model=[workflow.id("EAM_LoadModel"), 0])
    base = workflow.latents()
    assert torch.equal(result(FRESH), base)
    assert torch.equal(result(TRAINED, control_scale=0.0), base)
    assert not torch.allclose(result(TRAINED), base, atol=1e-2)


def test_it_replaces_psi_dit_and_is_replaced_by_it(server: ComfyServer, source: Path) -> None:
    def result(first: str, second: str | None) -> Tensor:
        workflow = Workflow(server, source, first)
        if second is not None:
            apply = workflow.prompt[workflow.id(APPLY)]["inputs"]
            loaded = workflow.add("EAM_LoadModel", checkpoint="embedded (tiny, no text)", control=second)
            replaced = apply | {"model": [workflow.id(APPLY), 0], "control": [loaded[0], 3]}
            applied = workflow.add(APPLY, **replaced)[0]
            slots = enumerate(("model", "positive", "negative", "latent"))
            workflow.change(SAMPLER, **{name: [applied, slot] for slot, name in slots})
        return workflow.latents()

    assert torch.equal(result("auto", TRAINED), result(TRAINED, None))
    assert torch.equal(result(TRAINED, "auto"), result("auto", None))


def test_lora_and_skipped_layers_beside_it(server: ComfyServer, source: Path) -> None:
    name, generator = "diffusion_model.joint_blocks.0.x_block.attn.qkv", torch.Generator().manual_seed(0)
    shapes = {f"{name}.lora_up.weight": (768, 4), f"{name}.lora_down.weight": (4, 256)}
    folder = server.work_dir / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    lora = {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_file(lora, folder / "controlnet_lora.safetensors")

    def result(kind: str | None, **inputs: Any) -> Tensor:
        workflow = Workflow(server, source, TRAINED)
        workflow.use_core_sampler()
        if kind:
            model = workflow.add(kind, model=[workflow.id(APPLY), 0], **inputs)
            workflow.change("KSampler", model=model)
        return workflow.latents()

    def skipping(layers: str) -> Tensor:
        return result("SkipLayerGuidanceSD3", layers=layers, scale=3.0, start_percent=0.0, end_percent=1.0)

    plain = result(None)
    with_lora = (
        result("LoraLoaderModelOnly", lora_name="controlnet_lora.safetensors", strength_model=s) for s in (0.0, 1.0)
    )
    unchanged, changed = with_lora
    assert torch.equal(unchanged, plain)
    for other in (changed, skipping("0"), skipping("1")):
        assert other.isfinite().all() and not torch.allclose(other, plain, atol=1e-3)


def test_it_is_found_for_a_checkpoint_and_refused_for_another_size(
    server: ComfyServer, source: Path, patches: Path
) -> None:
    assert EMBEDDED.base
    (server.work_dir / "models" / "checkpoints").mkdir(parents=True, exist_ok=True)
    prefixed = {f"model.diffusion_model.{key}": value for key, value in read_weights(EMBEDDED.base).items()}
    save_file(prefixed, server.work_dir / "models" / "checkpoints" / "controlnet_base.safetensors")

    def attempt(checkpoint: str, control: str) -> Tensor:
        """Take text and VAE from the embedded model, the rest from the file."""
        workflow = Workflow(server, source, "auto")
        loaded = workflow.add("EAM_LoadModel", checkpoint=checkpoint, control=control)[0]
        workflow.change(APPLY, model=[loaded, 0], control=[loaded, 3])
        return workflow.latents()

    with pytest.raises(ExecutionError, match=r"EAM_ApplyControl: expected control weights for this base .*depth 2"):
        attempt("embedded (tiny, no text)", FOREIGN)
    (patches / FRESH).unlink()
    found = attempt("controlnet_base.safetensors", "auto")
    assert torch.equal(found, attempt("controlnet_base.safetensors", TRAINED))
