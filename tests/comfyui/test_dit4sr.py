"""DiT4SR in a real ComfyUI: its authors' numbers through a patched MODEL, with what users put around it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from comfy_host import ComfyServer
from dit4sr_golden import Golden, needs_golden
from dit4sr_graph import HOST, QKV, RULES, SHARDS, TOLERANCE, WHOLE, Graph, dit4sr_host, log_after, log_size, runs
from safetensors.torch import load_file
from torch import Tensor

from eam_core.checkpoint import build_autoencoder
from eam_core.denoiser import Text
from eam_core.images import load_image
from eam_core.pipeline import Restorer
from eam_core.presets import DIT4SR, EMBEDDED
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import read_weights

pytestmark = needs_golden


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    with dit4sr_host(tmp_path_factory.mktemp("host")) as running:
        yield running


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.load(HOST.format("v1"))


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
