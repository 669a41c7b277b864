"""What people put around the nodes, part two: samplers, guidance, caches, masks. docs/COMPATIBILITY.md lists the rows.

One step from sigma 1 is one prediction of the network, so it can be told by hand what a guidance node makes of several.
"""

from typing import Any

import pytest
import torch
from graphs import SAMPLING, TILED, Graph, Node, applied, log_since, log_size, photo
from safetensors.torch import save_file
from torch import Tensor

from eam_core.checkpoint import build_control, build_mmdit
from eam_core.flow import denoised_from_velocity
from eam_core.model.autoencoder import scale_latents
from eam_core.model.mmdit import Guest
from eam_core.model.psi_dit import PsiDiT
from eam_core.presets import EMBEDDED
from eam_core.weight_files import read_weights

SAME = 1e-4  # latents are about 1; the same sum in another order
BY_HAND = 1e-3  # scales of up to 3 on differences of predictions
LAYER = 1
SKIP_RANGE = {"start_percent": 0.0, "end_percent": 1.0}


class SkipBlock:
    """Leave one block out, with what the control does around it."""

    def __init__(self, guest: Guest):
        self.guest, self.state = guest, guest.state

    def run_block(self, index: int, img: Tensor, txt: Tensor, vec: Tensor, block: Any) -> tuple[Tensor, Tensor]:
        return (img, txt) if index == LAYER else self.guest.run_block(index, img, txt, vec, block)


class Library:
    """What the library's own network predicts in the first step: the denoised latents as the network takes them."""

    def __init__(self) -> None:
        assert EMBEDDED.base and EMBEDDED.control
        base = build_mmdit(read_weights(EMBEDDED.base), "base")
        self.model = PsiDiT(base, build_control(read_weights(EMBEDDED.control), "control")).eval().float()

    @torch.no_grad()
    def __call__(self, noise: Tensor, lr: Tensor | None, *, skip: bool = False) -> Tensor:
        params = self.model.base.params
        self.model.wrap_guest = SkipBlock if skip else lambda guest: guest
        context = torch.zeros(1, EMBEDDED.num_null_tokens, params.context_size)
        pooled = torch.zeros(1, params.pooled_size)
        velocity = self.model(noise, torch.full((1,), 1000.0), context, pooled, lr)
        return denoised_from_velocity(noise, velocity, 1.0)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


class Step(Graph):
    """One step at CFG 2, the negative without the picture."""

    def __init__(self, graph: Graph):
        super().__init__(graph.server)
        self.loaded = self.load()
        self.node = self.apply(photo(self), self.loaded)
        self.bare = self.add("CLIPTextEncode", text="", clip=self.loaded[1])[0]

    def run(self, model: Any = None, **changes: Any) -> Tensor:
        links = {"model": model or self.node[0], "negative": self.bare}
        sampled = self.k_sampler(self.node, **links | {"steps": 1, "cfg": 2.0} | changes)
        return scale_latents(self.latents(sampled[0]))

    def run_tiled(self, model: Any = None, **changes: Any) -> Tensor:
        links = {"model": model or self.node[0], "negative": self.bare}
        sampled = self.tiled_sampler(self.node, **links | {"steps": 1, "cfg": 2.0} | changes)
        return scale_latents(self.latents(sampled[0]))

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Noise as core draws it, and the LR latents as the network takes them."""
        lr = scale_latents(self.latents(self.node[3]))
        return torch.randn(lr.shape, generator=torch.Generator().manual_seed(SAMPLING["seed"])), lr


@pytest.fixture
def step(graph: Graph) -> Step:
    return Step(graph)


def differ(one: Tensor, other: Tensor) -> bool:
    return not torch.allclose(one, other, atol=1e-2)


# Guidance


@pytest.mark.parametrize("kind", ["SkipLayerGuidanceSD3", "SkipLayerGuidanceDiT"])
def test_skip_layer_guidance_by_hand(step: Step, library: Library, kind: str) -> None:
    layers = {"layers": str(LAYER)}
    if kind == "SkipLayerGuidanceDiT":
        layers = {"double_layers": str(LAYER), "single_layers": "", "rescaling_scale": 0.0}
    guided = step.add(kind, model=step.node[0], scale=3.0, **layers, **SKIP_RANGE)[0]
    noise, lr = step.inputs()
    positive, negative, skipped = library(noise, lr), library(noise, None), library(noise, lr, skip=True)
    plain = negative + 2 * (positive - negative)
    expected = plain + 3 * (positive - skipped)
    assert torch.allclose(step.run(), plain, atol=BY_HAND)
    assert torch.allclose(step.run(guided), expected, atol=BY_HAND)
    assert torch.allclose(step.run_tiled(guided), expected, atol=BY_HAND)
    assert differ(expected, plain) and differ(skipped, library(noise, None, skip=True))


def test_skip_layer_guidance_in_the_negative_only(step: Step, library: Library) -> None:
    layers = {"double_layers": str(LAYER), "single_layers": ""}
    guided = step.add("SkipLayerGuidanceDiTSimple", model=step.node[0], **layers, **SKIP_RANGE)[0]
    noise, lr = step.inputs()
    positive, skipped = library(noise, lr), library(noise, lr, skip=True)
    for run in (step.run, step.run_tiled):
        assert torch.allclose(run(guided, negative=step.node[2]), 2 * positive - skipped, atol=BY_HAND)


def test_skip_layer_guidance_in_tiles(step: Step) -> None:
    def guided(scale: float) -> Any:
        return step.add("SkipLayerGuidanceSD3", model=step.node[0], layers=str(LAYER), scale=scale, **SKIP_RANGE)[0]

    skipping = step.add("TestSkipped", model=step.node[0], layer=LAYER)[0]
    plain, positive = step.run_tiled(**TILED), step.run_tiled(**TILED, cfg=1.0)
    skipped = step.run_tiled(skipping, **TILED, cfg=1.0)
    one, four = (step.run_tiled(guided(3.0), **TILED, tile_batch=number) for number in (1, 4))
    assert torch.allclose(one, plain + 3 * (positive - skipped), atol=BY_HAND)
    assert torch.allclose(four, one, atol=BY_HAND)
    assert differ(one, plain)


def test_cfg_zero_star_and_rescale_cfg_by_hand(step: Step, library: Library) -> None:
    noise, lr = step.inputs()
    positive, negative = library(noise, lr), library(noise, None)
    v_positive, v_negative = noise - positive, noise - negative
    alpha = (v_positive * v_negative).sum() / v_negative.square().sum()
    zero_star = alpha * negative + 2 * (positive - alpha * negative)  # core scales the denoised, not the velocity
    # Core's node reads the prediction as one of a variance-preserving model, here at sigma 1.
    v, u = ((noise / 2 - (noise - each)) * 2**0.5 for each in (positive, negative))
    mixed = u + 2 * (v - u)
    rescaled = 0.7 * mixed * v.std() / mixed.std() + 0.3 * mixed
    expected = {"CFGZeroStar": ({}, zero_star), "RescaleCFG": ({"multiplier": 0.7}, noise / 2 + rescaled / 2**0.5)}
    for kind, (settings, by_hand) in expected.items():
        model = step.add(kind, model=step.node[0], **settings)[0]
        assert torch.allclose(step.run(model), by_hand, atol=BY_HAND), kind
        assert torch.allclose(step.run_tiled(model), by_hand, atol=BY_HAND), kind
        assert differ(step.run(model), step.run()), kind


def test_perturbed_attention_changes_nothing(step: Step) -> None:
    """It looks for the middle block of a UNet, which SD3 does not have, with a control or without."""
    model = step.add("PerturbedAttentionGuidance", model=step.node[0], scale=3.0)[0]
    assert torch.allclose(step.run(model), step.run(), atol=BY_HAND)


@pytest.mark.parametrize("tiling", [{}, TILED], ids=["untiled", "tiled"])
def test_lazy_cache_skips_whole_steps(step: Step, tiling: dict[str, Any]) -> None:
    def cached(threshold: float) -> tuple[Tensor, str]:
        numbers = {"reuse_threshold": threshold, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
        model, start = step.add("LazyCache", model=step.node[0], **numbers)[0], log_size(step.server)
        return step.run_tiled(model, **run), log_since(step.server, start)

    run = {"steps": 6, "cfg": 1.0, "start_sigma": 0.5, **tiling}
    exact = step.run_tiled(**run)
    (same, said_same), (quick, said_quick) = cached(0.0), cached(0.5)
    assert "skipped 0/6" in said_same and torch.allclose(same, exact, atol=SAME)
    assert "skipped 0/6" not in said_quick and "LazyCache - skipped" in said_quick
    assert 1e-4 < (quick - exact).norm() / exact.norm() < 0.3


def test_easy_cache_changes_nothing(step: Step) -> None:
    """It hangs on a wrapper that SD3's network does not call in this ComfyUI."""
    numbers = {"reuse_threshold": 0.5, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    model = step.add("EasyCache", model=step.node[0], **numbers)[0]
    assert torch.allclose(step.run(model, steps=4), step.run(steps=4), atol=SAME)


# Samplers


@pytest.mark.parametrize("guider", ["CFGGuider", "BasicGuider"])
def test_custom_sampler_is_k_sampler(graph: Graph, guider: str) -> None:
    loaded = graph.load()
    node = graph.apply(photo(graph), loaded)
    bare = graph.add("CLIPTextEncode", text="", clip=loaded[1])[0]
    sides = {"positive": node[1], "negative": bare}
    if guider == "CFGGuider":
        made, cfg = graph.add("CFGGuider", model=node[0], cfg=2.0, **sides), 2.0
    else:
        made, cfg = graph.add("BasicGuider", model=node[0], conditioning=node[1]), 1.0
    levels = graph.add("BasicScheduler", model=node[0], scheduler="sgm_uniform", steps=3, denoise=0.6)
    parts = {
        "noise": graph.add("RandomNoise", noise_seed=SAMPLING["seed"])[0],
        "guider": made[0],
        "sampler": graph.add("KSamplerSelect", sampler_name="dpmpp_2m")[0],
        "sigmas": levels[0],
        "latent_image": node[3],
    }
    got = graph.latents(graph.add("SamplerCustomAdvanced", **parts)[0])
    by_core = graph.k_sampler(node, negative=bare, cfg=cfg, steps=3, sampler_name="dpmpp_2m", denoise=0.6)
    assert torch.equal(got, graph.latents(by_core[0]))
    assert differ(got, graph.latents(graph.k_sampler(node, model=loaded[0], steps=3, denoise=0.6)[0]))


def test_advanced_k_sampler_in_two_parts_is_the_whole(graph: Graph) -> None:
    node = applied(graph)
    links = {"model": node[0], "positive": node[1], "negative": node[2], "cfg": 1.0, "steps": 4}
    links |= {"noise_seed": 3, "sampler_name": "euler", "scheduler": "sgm_uniform"}

    def part(latent: Any, first: int, last: int) -> Node:
        switches = {"add_noise": "disable" if first else "enable", "return_with_leftover_noise": "enable"}
        return graph.add(
            "KSamplerAdvanced", latent_image=latent, start_at_step=first, end_at_step=last, **links | switches
        )

    whole = graph.latents(graph.k_sampler(node, steps=4)[0])
    halfway = part(node[3], 0, 2)[0]
    assert torch.allclose(graph.latents(part(halfway, 2, 10000)[0]), whole, atol=BY_HAND)
    assert differ(graph.latents(halfway), whole)


@pytest.mark.parametrize("by", ["core's", "ours"])
def test_every_picture_of_a_batch_is_what_it_is_alone(graph: Graph, by: str) -> None:
    loaded = graph.load()
    pictures = [photo(graph), photo(graph, "two")]
    batch = graph.add("ImageBatch", image1=pictures[0], image2=pictures[1])[0]

    def result(image: Any) -> Tensor:
        node = graph.apply(image, loaded)
        sampled = (graph.k_sampler if by == "core's" else graph.tiled_sampler)(node, cfg=2.0, steps=2)
        return graph.latents(sampled[0])

    together, first, second = result(batch), result(pictures[0]), result(pictures[1])
    assert together.shape[0] == 2
    assert torch.allclose(together[:1], first, atol=SAME)
    assert differ(together[1:], first) and differ(together[1:], second)  # its own noise, and its own picture


def test_second_pass_on_enlarged_latents(graph: Graph) -> None:
    """The second pass knows its own picture and nothing of the first pass but its latents."""
    loaded = graph.load()
    first = graph.apply(photo(graph), loaded, scale=2.0)
    small = graph.k_sampler(first)[0]
    second = graph.apply(photo(graph), loaded, model=first[0], positive=first[1], negative=first[2])
    method = {"upscale_method": "nearest-exact", "width": 128, "height": 96, "crop": "disabled"}
    large = graph.add("LatentUpscale", samples=small, **method)[0]
    got = graph.latents(graph.k_sampler(second, latent_image=large, denoise=0.5)[0])

    by_hand = graph.latents(small).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    version = {"latent_format_version_0": torch.zeros(0)}
    save_file({"latent_tensor": by_hand, **version}, graph.server.work_dir / "input" / "large.latent")
    saved = graph.add("LoadLatent", latent="large.latent")[0]
    alone = graph.apply(photo(graph), loaded)
    expected = graph.latents(graph.k_sampler(alone, latent_image=saved, denoise=0.5)[0])
    assert torch.allclose(got, expected, atol=SAME)
    assert differ(got, graph.latents(graph.k_sampler(alone, denoise=0.5)[0]))


# Masks


def test_differential_diffusion_in_core_and_in_one_tile(graph: Graph) -> None:
    node = applied(graph)
    right = graph.add("SolidMask", value=1.0, width=128, height=96)[0]
    half = graph.add("SolidMask", value=0.5, width=64, height=96)[0]
    strips = graph.add("MaskComposite", destination=right, source=half, x=0, y=0, operation="multiply")[0]
    none = graph.add("SolidMask", value=0.0, width=32, height=96)[0]
    strips = graph.add("MaskComposite", destination=strips, source=none, x=0, y=0, operation="multiply")[0]
    latent = graph.add("SetLatentNoiseMask", samples=node[3], mask=strips)[0]
    model = graph.add("DifferentialDiffusion", model=node[0], strength=1.0)[0]
    start = graph.latents(node[3])
    by_core, ours, tiled = (
        graph.latents(sampled[0])
        for sampled in (
            graph.k_sampler(node, model=model, latent_image=latent, steps=4),
            graph.tiled_sampler(node, model=model, latent=latent, steps=4),
            graph.tiled_sampler(node, model=model, latent=latent, steps=4, **TILED),
        )
    )
    assert torch.equal(ours, by_core)
    for result in (by_core, tiled):
        changed = (result - start).abs().mean(dim=(0, 1, 2))
        assert changed[:4].max() < SAME
        assert 0.01 < changed[4:8].mean() < changed[8:].mean()
