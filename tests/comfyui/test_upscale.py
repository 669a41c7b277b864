"""EAM_Upscale: the expert graph's picture to the last digit, nothing computed twice, settings of each control."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_host import ComfyServer, ExecutionError
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1] / "core")]

import dit4sr_golden
import tsdsr_golden
from caption_endpoint import StandInEndpoint
from graphs import Node
from page_news import News, follow

from eam_core.presets import DIT4SR, EMBEDDED, SD3, TSDSR, Spec
from eam_core.weight_files import save_weights

EMBEDDED_MODEL = {"checkpoint": "embedded (tiny, no text)", "control": "auto"}
BASES = {"sd3": "tiny_base.safetensors", "dit4sr": "dit4sr_base.safetensors", "tsdsr": "tsdsr_base.safetensors"}
CONTROLS = {
    "dit4sr": "dit4sr/transformer/diffusion_pytorch_model.safetensors",
    "tsdsr": "tsdsr/transformer.safetensors",
}
GOLDEN = {"dit4sr": bool(dit4sr_golden.FORWARD), "tsdsr": bool(tsdsr_golden.FILES)}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "custom_nodes").mkdir()
    packs = ["upscale_pack.py", "tsdsr_pack.py"] if GOLDEN["tsdsr"] else ["upscale_pack.py"]
    for pack in packs:
        shutil.copy(Path(__file__).with_name(pack), folder / "custom_nodes")
    save_models(folder / "models")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        if GOLDEN["tsdsr"]:
            environment.setenv("EAM_GOLDEN_FILE", str(tsdsr_golden.FOLDER / tsdsr_golden.FILES[0]))
        with ComfyServer(folder) as running:
            pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
            for name, coarse in zip(("one", "two"), pixels, strict=True):
                path = folder / f"{name}.png"
                Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(path)
                running.upload_image(path)
            yield running


def save_models(models: Path) -> None:
    """Write bases of core's loaders: the embedded one, which core takes for an SD3, and small random ones."""
    bases = models / "diffusion_models"
    bases.mkdir(parents=True)
    shutil.copy(EMBEDDED.base, bases / BASES["sd3"])
    if GOLDEN["dit4sr"]:
        golden = dit4sr_golden.Golden.load("dit4sr_v1_host.safetensors")
        save_weights(bases / BASES["dit4sr"], golden.base)
        dit4sr_golden.save_folder((models / "model_patches" / CONTROLS["dit4sr"]).parent, golden.weights)
    if GOLDEN["tsdsr"]:
        golden = tsdsr_golden.Golden.load(tsdsr_golden.FILES[0])
        golden.save_base(bases / BASES["tsdsr"])
        golden.save_control((models / "model_patches" / CONTROLS["tsdsr"]).parent)


class Graph:
    """A prompt in the making: the node, or the expert graph that it stands for."""

    def __init__(self, host: ComfyServer, family: str = "embedded") -> None:
        self.host, self.family, self.prompt = host, family, {}
        self.news = News()

    def add(self, kind: str, **inputs: Any) -> Node:
        node = Node(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": kind, "inputs": inputs}
        return node

    def photo(self, name: str = "one") -> Any:
        return self.add("LoadImage", image=f"{name}.png")[0]

    def parts(self) -> dict[str, Any]:
        """Return model, clip, vae and control of a family."""
        choice = EMBEDDED_MODEL | {"control": CONTROLS.get(self.family, "auto")}
        loaded = self.add("EAM_LoadModel", **choice)
        parts = {name: loaded[slot] for slot, name in enumerate(("model", "clip", "vae", "control"))}
        if self.family != "embedded":
            base = {"unet_name": BASES[self.family], "weight_dtype": "default"}
            parts["model"] = self.add("UNETLoader", **base)[0]
            parts["clip"] = self.add("TestWords", pooled_size=64 if self.family == "sd3" else 32)[0]
        if self.family == "tsdsr":
            parts["vae"] = self.add("TestGoldenVAE")[0]
        return parts

    def upscale(self, image: Any = None, **inputs: Any) -> Node:
        given = {"scale": 4.0, "fidelity": 0.0, "caption": "", "seed": 5}
        return self.add("EAM_Upscale", image=image or self.photo(), **given | inputs)

    def expert(self, spec: Spec, caption: str = "", image: Any = None, **changes: Any) -> Any:
        """Return the picture of the expert graph with a family's settings by hand."""
        parts, image = self.parts(), image or self.photo()
        texts = [self.add("CLIPTextEncode", text=text, clip=parts["clip"])[0] for text in (caption, "")]
        if spec.fixed_prompt:
            texts = 2 * [self.add("EAM_ControlPrompt", control=parts["control"])[0]]
        links = {name: parts[name] for name in ("model", "vae", "control")}
        numbers = {"scale": 4.0, "control_scale": 1.0, "start": 0.0, "end": 1.0}
        numbers |= {name: changes.pop(name) for name in list(changes) if name in numbers}
        applied = self.add("EAM_ApplyControl", positive=texts[0], negative=texts[1], image=image, **links, **numbers)
        sampling = {"seed": 5, "steps": spec.steps, "cfg": spec.cfg_scale, "sampler_name": spec.sampler}
        sampling |= {"scheduler": spec.scheduler, "start_sigma": spec.sigma_start, "fidelity": 0.0}
        sampling |= {"tile": 0, "overlap": 0, "tile_batch": 1}
        links = {name: applied[slot] for slot, name in enumerate(("model", "positive", "negative", "latent"))}
        sampled = self.add("EAM_TiledSampler", **links, **sampling | changes)
        decoded = self.add("VAEDecode", samples=sampled[0], vae=parts["vae"])
        return self.add("EAM_ColorFix", image=decoded[0], reference=image, method=spec.color_fix)[0]

    def run(self, image: Any, caption: Any = None) -> Tensor:
        """Return an IMAGE as [B, 3, H, W], to the last digit; `news` has what the page was told."""
        self.add("SaveLatent", samples=self.add("TestExact", image=image)[0], filename_prefix="picture")
        if caption:
            self.add("PreviewAny", source=caption)
        self.news = follow(self.host, self.prompt)
        assert self.news.outcome == "execution_success", self.news.error
        files = (self.host.work_dir / "output").glob("picture_*.latent")
        return load_file(max(files, key=os.path.getmtime))["latent_tensor"]

    def caption(self) -> str:
        return self.news.outputs["PreviewAny"]["text"][0]

    def executed(self) -> set[str]:
        """Return the parts of the node that were computed and not found in core's cache."""
        return {node.rsplit(".", 1)[-1] for node in self.news.executing if "." in node}


@pytest.fixture
def graph(host: ComfyServer) -> Graph:
    return Graph(host)


EVERYTHING = {"load", "positive", "negative", "control", "sampler", "decode", "colors"}


def test_five_widgets_are_enough(graph: Graph, host: ComfyServer) -> None:
    node = graph.upscale(caption="a beach", fidelity=0.5)
    picture = graph.run(node[0], caption=node[1])
    assert picture.shape == (1, 3, 128, 160)
    assert graph.caption() == "a beach"
    by_hand = Graph(host)
    assert torch.equal(picture, by_hand.run(by_hand.expert(EMBEDDED, fidelity=0.5)))
    other = Graph(host)
    assert not torch.equal(picture, other.run(other.expert(EMBEDDED, fidelity=0.0)))


def test_only_what_changes_is_computed_again(host: ComfyServer) -> None:
    with StandInEndpoint() as endpoint:

        def run(**changes: Any) -> set[str]:
            graph = Graph(host)
            captioner = graph.add("EAM_LoadCaptioner", source=endpoint.url, name="stand-in")[0]
            node = graph.upscale(captioner=captioner, **{"seed": 31} | changes)
            graph.run(node[0], caption=node[1])
            assert graph.caption() == ("my own" if "caption" in changes else endpoint.text)
            return graph.executed()

        assert run() == EVERYTHING | {"caption"}
        assert run() == set()
        sampled = {"sampler", "decode", "colors"}
        assert run(fidelity=0.25) == run(seed=32) == run(tile=64, overlap=16) == sampled
        assert run(scale=3.0) == sampled | {"control"}
        assert len(endpoint.asked) == 1
        assert run(caption="my own") == sampled | {"positive", "control"}
        assert len(endpoint.asked) == 1


def test_typed_caption_does_not_open_the_captioner(graph: Graph) -> None:
    captioner = graph.add("EAM_LoadCaptioner", source="http://127.0.0.1:9/v1", name="nobody")
    node = graph.upscale(caption="typed", seed=41, captioner=captioner[0])
    graph.run(node[0])
    assert captioner not in graph.news.executing


@pytest.mark.parametrize(("family", "spec"), [("embedded", EMBEDDED), ("sd3", SD3), ("dit4sr", DIT4SR)])
def test_settings_of_the_control(host: ComfyServer, family: str, spec: Spec) -> None:
    if not GOLDEN.get(family, True):
        pytest.skip("no golden files; set EAM_GOLDEN")
    graph, by_hand = Graph(host, family), Graph(host, family)
    picture = graph.run(graph.upscale(caption="a red boat", scale=2.0, **graph.parts())[0])
    assert picture.isfinite().all()
    assert torch.equal(picture, by_hand.run(by_hand.expert(spec, caption="a red boat", scale=2.0)))


@pytest.mark.skipif(not GOLDEN["tsdsr"], reason="no golden files; set EAM_GOLDEN")
@pytest.mark.parametrize("with_clip", [True, False])
def test_control_with_a_text_of_its_own(host: ComfyServer, with_clip: bool) -> None:
    graph, by_hand = Graph(host, "tsdsr"), Graph(host, "tsdsr")
    parts = graph.parts()
    if not with_clip:
        del parts["clip"]
    node = graph.upscale(caption="a red boat", **parts)
    picture = graph.run(node[0], caption=node[1])
    assert graph.caption() == TSDSR.fixed_prompt
    assert torch.equal(picture, by_hand.run(by_hand.expert(TSDSR)))


def test_own_settings_and_the_caption_count(host: ComfyServer) -> None:
    own = {"steps": 3, "cfg": 2.0, "sampler_name": "dpmpp_2m", "scheduler": "normal", "start_sigma": 0.8}
    own |= {"tile": 96, "overlap": 32, "tile_batch": 2}
    graph, by_hand = Graph(host, "sd3"), Graph(host, "sd3")
    node = graph.upscale(caption="a boat", control_scale=0.5, color_fix="adain", **own, **graph.parts())
    picture = graph.run(node[0])
    image = by_hand.expert(SD3, caption="a boat", control_scale=0.5, **own)
    by_hand.prompt[image[0]]["inputs"]["method"] = "adain"
    assert torch.equal(picture, by_hand.run(image))
    graph.prompt[node]["inputs"]["caption"] = "a lighthouse"
    assert not torch.equal(picture, graph.run(node[0])), "the caption does not count"


def test_lists_of_pictures_are_taken_one_by_one(host: ComfyServer) -> None:
    graph, alone = Graph(host), Graph(host)
    batch = graph.add("ImageBatch", image1=graph.photo("one"), image2=graph.photo("two"))[0]
    node = graph.upscale(image=graph.add("TestApart", image=batch)[0], seed=51)
    joined = graph.add("RebatchImages", images=node[0], batch_size=2)[0]
    both = graph.run(joined)
    assert both.shape == (2, 3, 128, 160)
    second = alone.run(alone.upscale(image=alone.photo("two"), seed=51)[0])
    assert torch.equal(both[1:], second)


@pytest.mark.parametrize(
    ("side", "embedded", "kind"),
    [
        (512, False, "VAEDecode"),
        (514, False, "VAEDecodeTiled"),
        (514, True, "VAEDecode"),
        (1026, True, "VAEDecodeTiled"),
    ],
)
def test_large_results_are_decoded_in_tiles(graph: Graph, side: int, embedded: bool, kind: str) -> None:
    made = graph.add("TestExpansion", width=side, height=side, scale=4.0, embedded=embedded)
    graph.add("PreviewAny", source=made[0])
    graph.news = follow(graph.host, graph.prompt)
    nodes = json.loads(graph.news.outputs["PreviewAny"]["text"][0])
    assert nodes["decode"]["class_type"] == kind
    assert nodes["sampler"]["inputs"]["steps"] == (1 if embedded else 28)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (("control",), r"got model, clip and vae without control; connect control "),
        (("model", "vae"), r"got clip and control without model and vae; connect model and vae "),
        (("clip",), r"got model, vae and control without clip; connect clip "),
        (("model", "clip", "control"), r"got vae without model, clip and control; "),
    ],
)
def test_partial_sets_are_refused(graph: Graph, left_out: tuple[str, ...], message: str) -> None:
    parts = {name: link for name, link in graph.parts().items() if name not in left_out}
    refused(graph, f"EAM_Upscale: expected model, clip, vae and control together or none of them, {message}", **parts)


def test_pictures_too_small_or_results_too_large_are_refused(graph: Graph) -> None:
    tiny = graph.add("ImageScale", image=graph.photo(), upscale_method="bilinear", width=4, height=4, crop="disabled")
    refused(graph, r"EAM_Upscale: the image: expected edges of \d+ to \d+ pixels, got 4 x 4", image=tiny[0])


def refused(graph: Graph, message: str, **inputs: Any) -> None:
    graph.add("PreviewImage", images=graph.upscale(**inputs)[0])
    with pytest.raises(ExecutionError, match=message):
        graph.host.run(graph.prompt)
