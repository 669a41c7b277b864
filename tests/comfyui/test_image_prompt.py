"""The image prompt in a real ComfyUI: the same tokens and the same pictures as the library, beside any other node."""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import REPO, ComfyServer, ExecutionError, graph_to_prompt
from PIL import Image
from safetensors.torch import load_file

from eam_core.checkpoint import IMAGE_PROMPT_PREFIX, build_mmdit
from eam_core.images import load_image
from eam_core.model.image_prompt import ImagePrompt, ImagePromptParams, init_image_prompt
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import read_weights, save_weights
from train.train_vision_tower import save_tower

IMAGE_SIZE = 32
TOWER = {"hidden_size": IMAGE_SIZE, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWER |= {"image_size": 28, "patch_size": 7, "projection_dim": 16, "hidden_act": "gelu"}
# Core recognises towers by the layer counts of the published ones; this node gives core's own class a small one.
LOADER = """
import comfy.clip_vision
import comfy.utils


class TinyTower:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP_VISION",), "load", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"folder": ("STRING", {})}}

    def load(self, folder):
        tower = comfy.clip_vision.ClipVisionModel(folder + "/core.json")
        missing, unexpected = tower.load_sd(comfy.utils.load_torch_file(folder + "/model.safetensors"))
        assert not missing and not unexpected, (missing, unexpected)
        return (tower,)


class Tokens:
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "read", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"output": ("CLIP_VISION_OUTPUT",)}}

    def read(self, output):
        return ({"samples": output.last_hidden_state},)


NODE_CLASS_MAPPINGS = {"TinyTower": TinyTower, "Tokens": Tokens}
"""


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random tower as training writes it, with core's kind of config beside it."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
    from comfy_launch import define_missing_operators

    define_missing_operators()
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    random = CLIPVisionModelWithProjection(CLIPVisionConfig(**TOWER))
    save_tower(random, random.state_dict(), folder)
    core = {**TOWER, "num_channels": 3, "model_type": "clip_vision_model"}
    (folder / "core.json").write_text(json.dumps(core))
    return folder


@pytest.fixture(scope="module")
def host(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / "tiny_tower.py").write_text(LOADER)
    with ComfyServer(folder) as running:
        for name, seed in (("one", 0), ("two", 1)):
            Image.fromarray(picture(seed)).save(folder / f"{name}.png")
            running.upload_image(folder / f"{name}.png")
        save_controls(folder / "models" / "model_patches")
        yield running


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((32, 24), Image.Resampling.BICUBIC))


def save_controls(folder: Path) -> None:
    """Write the embedded control with a new image prompt and with a trained one, and one for a smaller base."""
    folder.mkdir(parents=True, exist_ok=True)
    assert EMBEDDED.base and EMBEDDED.control
    base = build_mmdit(read_weights(EMBEDDED.base), "base").float()
    size = {"depth": base.params.depth, "hidden_size": base.params.hidden_size}
    for name, std, changes in (("new", 0.0, {}), ("trained", 0.1, {}), ("small", 0.0, {"depth": 1})):
        torch.manual_seed(3)
        prompt = ImagePrompt(ImagePromptParams(**size | changes, image_size=IMAGE_SIZE, qk_norm=base.params.qk_norm))
        if not changes:
            init_image_prompt(prompt, base.state_dict())
        for block in prompt.blocks if std else ():
            torch.nn.init.normal_(block.to_out_ip.weight, std=std)
        state = {IMAGE_PROMPT_PREFIX + key: value for key, value in prompt.state_dict().items()}
        save_weights(folder / f"{name}.safetensors", read_weights(EMBEDDED.control) | state)


class Graph:
    """A prompt in the making, on the embedded model and a control file of its name."""

    def __init__(self, host: ComfyServer, tower: Path, control: str = "trained") -> None:
        self.host, self.prompt = host, {}
        control = "auto" if control == "auto" else f"{control}.safetensors"
        loaded = self.add("EAM_LoadModel", checkpoint="embedded (tiny, no text)", control=control)
        self.model, self.clip, self.vae, self.control = ([loaded, slot] for slot in range(4))
        self.text = [self.add("CLIPTextEncode", text="", clip=self.clip), 0]
        self.tower = [self.add("TinyTower", folder=str(tower)), 0]

    def add(self, kind: str, **inputs: Any) -> str:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        return node

    def image(self, *names: str) -> Any:
        first, *others = ([self.add("LoadImage", image=f"{name}.png"), 0] for name in names)
        for other in others:
            first = [self.add("ImageBatch", image1=first, image2=other), 0]
        return first

    def seen(self, image: Any) -> Any:
        return [self.add("CLIPVisionEncode", clip_vision=self.tower, image=image, crop="none"), 0]

    def prompted(self, model: Any, image: Any, **changes: Any) -> Any:
        numbers = {"strength": 1.0, "start": 0.0, "end": 1.0} | changes
        inputs = {"model": model, "control": self.control, "clip_vision_output": self.seen(image)}
        return [self.add("EAM_ImagePrompt", **inputs, **numbers), 0]

    def applied(self, model: Any, image: Any, **changes: Any) -> SimpleNamespace:
        numbers = {"scale": 4.0, "control_scale": 1.0, "start": 0.0, "end": 1.0} | changes
        inputs = {"positive": self.text, "negative": self.text, "vae": self.vae, "control": self.control}
        node = self.add("EAM_ApplyControl", model=model, image=image, **inputs, **numbers)
        return SimpleNamespace(model=[node, 0], positive=[node, 1], negative=[node, 2], latent=[node, 3])

    def sampled(self, model: Any, applied: Any, **changes: Any) -> Any:
        numbers: dict[str, Any] = {"seed": 3, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "fidelity": 0.0}
        numbers |= {"scheduler": "sgm_uniform", "start_sigma": 1.0, "tile": 64, "overlap": 32, "tile_batch": 1}
        links = {"positive": applied.positive, "negative": applied.negative, "latent": applied.latent}
        return [self.add("EAM_TiledSampler", model=model, **links, **numbers | changes), 0]

    def latents(self, latent: Any) -> torch.Tensor:
        saved = self.add("SaveLatent", samples=latent, filename_prefix="test")
        found = self.host.run(self.prompt)[saved]["latents"][0]
        return load_file(self.host.work_dir / "output" / found["subfolder"] / found["filename"])["latent_tensor"]

    def run(self, names: tuple[str, ...] = ("one",), order: str = "prompt first", **changes: Any) -> torch.Tensor:
        """Sample with both nodes in an order, or with one of them."""
        image = self.image(*names)
        sampling = {key: changes.pop(key) for key in ("tile", "tile_batch", "cfg") if key in changes}
        model = self.prompted(self.model, image, **changes) if order in ("prompt first", "twice") else self.model
        applied = self.applied(model, image)
        model = self.model if order == "no control" else applied.model
        if order in ("control first", "twice", "no control"):
            model = self.prompted(model, image, **changes)
        return self.latents(self.sampled(model, applied, **sampling))


def test_core_sees_the_same_tokens_as_the_library(host: ComfyServer, tower: Path) -> None:
    from eam_core.vision import VisionTower

    graph = Graph(host, tower)
    core = graph.latents([graph.add("Tokens", output=graph.seen(graph.image("one"))), 0])
    ours = VisionTower(tower).encode(load_image(host.work_dir / "one.png").rgb)
    assert core.shape == ours.shape == (1, 17, IMAGE_SIZE)
    assert ours.std() > 0.1
    assert (core - ours).abs().max() < 1e-5


@pytest.mark.parametrize("order", ["prompt first", "control first"])
def test_new_image_prompt_changes_nothing_exactly(host: ComfyServer, tower: Path, order: str) -> None:
    plain = Graph(host, tower, "new").run(order="no prompt")
    assert torch.equal(Graph(host, tower, "new").run(order=order), plain)


def test_trained_one_acts_in_any_order_and_once(host: ComfyServer, tower: Path) -> None:
    plain = Graph(host, tower).run(order="no prompt")
    first, last, twice = (Graph(host, tower).run(order=order) for order in ("prompt first", "control first", "twice"))
    assert (first - plain).abs().max() > 1e-2
    assert torch.equal(first, last)
    assert torch.equal(first, twice)


def test_it_needs_no_control_on_the_model(host: ComfyServer, tower: Path) -> None:
    graph = Graph(host, tower)
    base = graph.latents(graph.sampled(graph.model, graph.applied(graph.model, graph.image("one"))))
    alone = Graph(host, tower).run(order="no control")
    assert (alone - base).abs().max() > 1e-2
    assert (alone - Graph(host, tower).run()).abs().max() > 1e-2


def test_it_acts_in_its_range_and_strength_only(host: ComfyServer, tower: Path) -> None:
    plain = Graph(host, tower).run(order="no prompt")
    assert torch.equal(Graph(host, tower).run(strength=0.0), plain)
    assert torch.equal(Graph(host, tower).run(start=1.0), plain)
    full, early, half = (Graph(host, tower).run(**numbers) for numbers in ({}, {"end": 0.3}, {"strength": 0.5}))
    assert not torch.equal(early, plain) and not torch.equal(early, full)
    assert not torch.equal(half, plain) and not torch.equal(half, full)


def test_every_picture_of_a_batch_keeps_its_own_tokens(host: ComfyServer, tower: Path) -> None:
    both, batched = (Graph(host, tower).run(("one", "two"), tile_batch=num) for num in (1, 3))
    assert torch.allclose(both, batched, atol=1e-4)
    same = Graph(host, tower).run(("one", "one"))
    assert torch.allclose(both[0], same[0], atol=1e-4)
    assert not torch.allclose(both[1], same[1], atol=1e-2)


def test_graph_equals_the_library(host: ComfyServer, tower: Path) -> None:
    """Several tiles and a trained image prompt; the graph's result is a PNG."""
    graph = Graph(host, tower)
    image = graph.image("one")
    applied = graph.applied(graph.prompted(graph.model, image), image)
    sampling = {"cfg": 1.0, "steps": 1, "start_sigma": EMBEDDED.sigma_start, "sampler_name": EMBEDDED.sampler}
    latent = graph.sampled(applied.model, applied, **sampling)
    saved = graph.add("PreviewImage", images=[graph.add("VAEDecode", samples=latent, vae=graph.vae), 0])
    found = host.run(graph.prompt)[saved]["images"][0]
    from_graph = np.asarray(Image.open(io.BytesIO(host.fetch(found))).convert("RGB")).astype(float) / 255

    control = host.work_dir / "models" / "model_patches" / "trained.safetensors"
    parts = {"base": EMBEDDED.base, "control": control, "autoencoder": EMBEDDED.autoencoder}
    settings = {"scale": 4, "seed": 3, "steps": 1, "tile": 64, "overlap": 32, "color_fix": "none"}
    config = RestoreConfig.from_spec(EMBEDDED, **settings)
    photo = load_image(host.work_dir / "one.png").rgb
    with_prompt = Restorer.from_files(**parts, image_encoder=tower)
    with pytest.warns(UserWarning, match="no image encoder is given"):
        plain = Restorer.from_files(**parts)
    from_library, without = (
        restorer.restore(photo, config)[0].permute(1, 2, 0).numpy() for restorer in (with_prompt, plain)
    )
    assert from_graph.shape == from_library.shape == (96, 128, 3)
    assert np.abs(from_graph - from_library).max() < 2 / 255
    assert np.abs(from_library - without).max() > 10 / 255


def test_example_workflow(host: ComfyServer, tower: Path) -> None:
    """Only the base, the number of steps and the tower's loader differ: core's own knows published sizes alone."""
    workflow = json.loads((REPO / "example_workflows" / "eam_image_prompt.json").read_text(encoding="utf-8"))
    patches = host.work_dir / "models" / "model_patches"
    shutil.copy(patches / "trained.safetensors", patches / "consissr.safetensors")

    def made(strength: float) -> np.ndarray:
        prompt = graph_to_prompt(workflow, host.object_info())
        nodes = {node["class_type"]: node for node in prompt.values()}
        assert nodes["EAM_LoadModel"]["inputs"]["control"] == "consissr.safetensors"
        nodes["EAM_LoadModel"]["inputs"]["checkpoint"] = "embedded (tiny, no text)"
        nodes["CLIPVisionLoader"] |= {"class_type": "TinyTower", "inputs": {"folder": str(tower)}}
        nodes["LoadImage"]["inputs"]["image"] = "one.png"
        nodes["EAM_TiledSampler"]["inputs"]["steps"] = 2
        nodes["EAM_ImagePrompt"]["inputs"]["strength"] = strength
        (saved,) = (key for key, node in prompt.items() if node["class_type"] == "SaveImage")
        found = host.run(prompt)[saved]["images"][0]
        return np.asarray(Image.open(io.BytesIO(host.fetch(found))).convert("RGB")).astype(float)

    prompted, plain = made(1.0), made(0.0)
    assert prompted.shape == (96, 128, 3)
    assert np.abs(prompted - plain).mean() > 1


def test_what_does_not_fit_is_refused_in_a_sentence(host: ComfyServer, tower: Path, tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match=r"expected control weights with an image prompt, but tiny_control\.safe"):
        Graph(host, tower, "auto").run()
    with pytest.raises(ExecutionError, match=r"small\.safetensors was trained for another: depth 1 instead of"):
        Graph(host, tower, "small").run()
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    wide = {**TOWER, "hidden_size": 64}
    CLIPVisionModelWithProjection(CLIPVisionConfig(**wide)).save_pretrained(tmp_path)
    (tmp_path / "core.json").write_text(json.dumps({**wide, "num_channels": 3, "model_type": "clip_vision_model"}))
    message = (
        "expected a CLIP vision model with tokens of 32 channels like the image prompt of trained.safetensors, got 64"
    )
    with pytest.raises(ExecutionError, match=message):
        Graph(host, tmp_path).run()
