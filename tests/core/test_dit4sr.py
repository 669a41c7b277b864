"""DiT4SR: the numbers of its authors' code, the published files' keys and shapes, and what is refused."""

import dataclasses
import json
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from eam_core.checkpoint import build_control, build_mmdit, check_pair, control_params, require, with_settings
from eam_core.cli import main
from eam_core.color import apply_color_fix
from eam_core.control_files import differing_base, read_control
from eam_core.diffusers_keys import is_diffusers_key, read_transformer, to_sd3_keys
from eam_core.errors import CheckpointError
from eam_core.flow import schedule
from eam_core.guidance import cfg
from eam_core.loading import spec_of_files
from eam_core.model.control import ControlParams
from eam_core.model.dit4sr import DiT4SR, DiT4SRParams, is_control_key, is_dead_key
from eam_core.model.image_prompt import ImagePrompt, ImagePromptParams
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.psi_dit import PsiDiT
from eam_core.model.recompute import RecomputedGuest
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import save_weights

sys.path.append(str(Path(__file__).parent))
from dit4sr_golden import FORWARD, SAMPLING, Golden, save_folder

TOLERANCE = 1e-5  # what the README of the outputs asks for in float32
SD35_MEDIUM = MMDiTParams(
    depth=24, hidden_size=1536, pos_embed_max_size=384, qk_norm=True, dual_attention_blocks=tuple(range(13))
)

needs_golden = pytest.mark.skipif(not FORWARD, reason="no outputs of the authors' code; set EAM_GOLDEN to their folder")


@pytest.fixture(scope="module")
def host() -> Golden:
    """The smaller model; its first release's file, whose weights are the revised one's."""
    return Golden.load("dit4sr_v1_host.safetensors")


class Watched:
    """A guest that keeps what every block returns."""

    def __init__(self, guest):
        self.guest, self.seen = guest, []

    def run_block(self, index, img, txt, vec, block):
        img, txt = self.guest.run_block(index, img, txt, vec, block)
        self.seen.append((img, self.guest.guests[0].state[0], txt, vec))
        return img, txt


# Numbers


@needs_golden
@pytest.mark.parametrize("name", FORWARD)
@torch.no_grad()
def test_every_block_and_the_output_are_the_authors(name):
    golden = Golden.load(name)
    model, watched = golden.model(), []
    model.wrap_guest = lambda guest: watched.append(Watched(guest)) or watched[0]
    output = model(*golden.inputs)
    assert output.std() > 0.5
    assert (output - golden["output"]).abs().max() < TOLERANCE
    assert len(watched[0].seen) == model.base.params.depth
    for index, (img, lr, txt, vec) in enumerate(watched[0].seen):
        streams = (
            {"noisy": img, "lr": lr, "text": txt} if index < model.base.params.depth - 1 else {"noisy": img, "lr": lr}
        )
        for stream, got in streams.items():
            expected = golden[f"intermediate.blocks.{index}.{stream}"]
            assert (got - expected).abs().max() < TOLERANCE * max(1, expected.abs().max()), (index, stream)
        assert (vec - golden["intermediate.conditioning"]).abs().max() < TOLERANCE


@needs_golden
@pytest.mark.parametrize("name", FORWARD)
@torch.no_grad()
def test_the_base_alone_is_the_authors_base(name):
    golden = Golden.load(name)
    model = golden.model()
    assert (model.base(*golden.inputs[:4]) - golden["output_base"]).abs().max() < TOLERANCE
    assert torch.equal(model(*golden.inputs, control_scale=0.0), model.base(*golden.inputs[:4]))


@needs_golden
@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("dit4sr_v1_tiny.safetensors", {"conv_scale": 1.0}, 0.04),
        ("dit4sr_v1_tiny.safetensors", {"key_rule": "r1"}, 0.1),
        ("dit4sr_r1_tiny.safetensors", {"key_rule": "first"}, 0.1),
    ],
)
@torch.no_grad()
def test_factor_and_key_rule_matter_as_much_as_the_readme_says(name, settings, least):
    golden = Golden.load(name)
    error = golden.model(**settings)(*golden.inputs) - golden["output"]
    assert error.square().mean().sqrt() > least


@needs_golden
@torch.no_grad()
def test_pictures_need_not_be_square(host):
    """Rows and columns are the true ones: where everything is turned the output turns, also where N is a square."""
    model = host.model()
    side = model.base.params.pos_embed_max_size
    _, timestep, context, pooled, _ = host.inputs
    turned = host.model()
    turned.base.pos_embed.copy_(model.base.pos_embed.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2))
    for module in (turned.base.x_embedder.proj, *(block.ff.control_conv for block in turned.control.blocks)):
        module.weight.copy_(module.weight.mT.clone())
    turned.base.final_layer.linear.load_state_dict(
        {
            # The last layer writes the four pixels of a token one after the other.
            key: value.unflatten(0, (2, 2, 16)).transpose(0, 1).flatten(0, 2)
            for key, value in turned.base.final_layer.linear.state_dict().items()
        }
    )
    for height, width in ((8, 32), (12, 18), (16, 16)):
        noisy, low = (torch.randn(2, 16, height, width) for _ in range(2))
        straight = model(noisy, timestep, context, pooled, low)
        sideways = turned(noisy.mT, timestep, context, pooled, low.mT)
        assert torch.allclose(sideways.mT, straight, atol=1e-4)
        assert not torch.allclose(straight, model(noisy, timestep, context, pooled, low.flip(-1)), atol=1e-2)
    noisy, low = (torch.randn(2, 16, 7, 9) for _ in range(2))
    assert model(noisy, timestep, context, pooled, low).shape == noisy.shape


@needs_golden
def test_blocks_computed_twice_give_the_same_gradients(host):
    gradients = []
    for wrap in (lambda guest: guest, RecomputedGuest):
        model = host.model()
        model.wrap_guest = wrap
        loss = model(*host.inputs).square().mean()
        used = [p for name, p in model.control.named_parameters() if "to_k_control" not in name]
        gradients.append(torch.autograd.grad(loss, used))
    assert all(torch.allclose(*pair) for pair in zip(*gradients))


@needs_golden
@torch.no_grad()
def test_passes_do_not_mix(host):
    """The LR tokens of a pass live in its run alone: two passes, block by block in turn, equal one after the other."""
    model = host.model()
    lr, place = host["inputs.lr_latent"], model.base.host(16, 16)
    vec, img, txt = torch.randn(2, 128), torch.randn(2, 64, 128), torch.randn(2, 12, 128)

    def forward(*lows):
        runs = [model.control.start(low, place) for low in lows]
        streams = [(img, txt)] * len(runs)
        for index in range(2):
            streams = [run.run_block(index, *stream, vec, None) for run, stream in zip(runs, streams)]
        return [stream[0] for stream in streams]

    together, apart = forward(lr, -lr), [*forward(lr), *forward(-lr)]
    assert all(torch.equal(*pair) for pair in zip(together, apart))
    assert not torch.allclose(*together, atol=1e-2)


@needs_golden
def test_it_cannot_remember_nor_leave_tokens_out(host):
    model = host.model()
    assert not model.control.can_remember
    with pytest.raises(ValueError, match="got DiT4SR"):
        model.remember(host["inputs.lr_latent"])
    with pytest.raises(ValueError, match="needs all LR tokens"):
        model(*host.inputs, keep=torch.zeros(2, 4, dtype=torch.long))


# Sampling as its authors do it


@needs_golden
def test_the_normal_scheduler_is_theirs():
    golden = Golden.load("dit4sr_v1_sampling.safetensors")
    for steps in (20, 28, 40):
        sigmas = schedule(steps, 3.0, scheduler="normal")
        assert (sigmas - golden[f"schedule.sigmas_{steps}"]).abs().max() < 1e-6
        assert (1000 * sigmas[:-1] - golden[f"schedule.timesteps_{steps}"]).abs().max() < 1e-3


@needs_golden
def test_adain_is_theirs():
    golden = Golden.load("dit4sr_v1_sampling.safetensors")
    fixed = apply_color_fix(golden["color.result"], golden["color.lr_upscaled"], "adain")
    assert (fixed - golden["color.adain"].clamp(0, 1)).abs().max() < TOLERANCE


def window(size: int) -> torch.Tensor:
    """Their tile window, float64, rows are y: peaked, and half a pixel off the middle in y."""
    place = torch.arange(size, dtype=torch.float64)
    x, y = (torch.exp(-((place - middle) ** 2) / (2 * 0.01 * size**2)) for middle in ((size - 1) / 2, size / 2))
    return y[:, None] * x


def starts(side: int, tile: int, overlap: int) -> list[int]:
    count = 1
    while count * tile - (count - 1) * overlap < side:
        count += 1
    return [*(i * (tile - overlap) for i in range(count - 1)), side - tile]


@needs_golden
@pytest.mark.parametrize("size", [16, 64])
def test_window_of_these_tests_is_theirs(size):
    expected = Golden.load("dit4sr_v1_sampling.safetensors")[f"tile_weights_{size}"]
    ours = window(size)
    assert ((ours / ours.max() - expected / expected.max()).abs() / (expected / expected.max())).max() < 1e-12


@needs_golden
@pytest.mark.parametrize("run", ["untiled", "tiled"])
@pytest.mark.parametrize("name", SAMPLING)
@torch.no_grad()
def test_whole_sampling_runs_are_theirs(name, run):
    golden = Golden.load(name)
    setup = json.loads(golden.metadata[run])
    model = Golden.load(setup["weights"]).model()
    given = {key.removeprefix(f"{run}."): value for key, value in golden.tensors.items() if key.startswith(f"{run}.")}
    tile, (height, width) = setup["tile"], given["noise"].shape[-2:]
    boxes = [(y, x) for y in starts(height, tile, setup["overlap"]) for x in starts(width, tile, setup["overlap"])]
    if run == "tiled":
        assert boxes == [(y, x) for y in setup["y_offsets"] for x in setup["x_offsets"]]
    weight = window(tile).float()
    x, sigmas = given["noise"], schedule(setup["steps"], setup["shift"], scheduler="normal")
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        velocities = []
        for side in ("positive", "negative"):
            total, norm = torch.zeros_like(x), torch.zeros_like(x)
            for top, left in boxes:
                place = (..., slice(top, top + tile), slice(left, left + tile))
                text = (given[f"text_{side}"], given[f"pooled_{side}"])
                velocity = model(x[place], 1000 * sigma[None], *text, given["lr_latent"][place])
                total[place] += weight * velocity
                norm[place] += weight
            velocities.append(total / norm)
        x = x + (sigma_next - sigma) * cfg(*velocities, setup["cfg_scale"])
        assert (x - given["latents_after_step"][step]).abs().max() < 1e-4, step
    assert (x - given["output"][0]).abs().max() < 1e-4


# Keys, shapes, files


def published() -> dict[str, torch.Tensor]:
    """What a published transformer adds to SD3.5 medium, without data."""
    params = DiT4SRParams(depth=24, hidden_size=1536, dual_attention_blocks=tuple(range(13)))
    control = DiT4SR(params, Factory(device="meta")).state_dict()
    dead = {}
    for index in range(13):
        for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            dead[f"transformer_blocks.{index}.attn2.{name}.weight"] = (1536, 1536)
            dead[f"transformer_blocks.{index}.attn2.{name}.bias"] = (1536,)
        for name in ("norm_added_q", "norm_added_k"):
            dead[f"transformer_blocks.{index}.attn2.{name}.weight"] = (64,)
    return control | {key: torch.empty(shape, device="meta") for key, shape in dead.items()}


def test_real_size_has_the_documented_tensors_and_counts(diffusers):
    """Section 2.3 of the description: 909 base, 344 control and 130 dead tensors, 2,716,814,144 parameters."""
    with torch.device("meta"):
        base = diffusers.SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        ).state_dict()
    whole = base | published()
    control = {key: value for key, value in whole.items() if is_control_key(key)}
    dead = {key: value for key, value in whole.items() if is_dead_key(key)}
    assert (len(whole), len(base), len(control), len(dead)) == (1383, 909, 344, 130)
    assert all(is_diffusers_key(key) for key in base) and not any(is_control_key(k) or is_dead_key(k) for k in base)

    def count(fragment: str, state: dict) -> int:
        return sum(value.numel() for key, value in state.items() if fragment in key)

    assert count("", control) == 350_877_696
    assert [count(f".attn.to_{part}_control", control) for part in ("q", "k", "v", "out")] == [56_659_968] * 4
    assert [count(f".attn2.to_{part}_control", control) for part in ("q", "k", "v", "out")] == [30_690_816] * 4
    assert count("control_conv", control) == 1_474_560
    assert control["transformer_blocks.0.ff.control_conv.weight"].shape == (6144, 1, 3, 3)
    assert count("", dead) == 122_764_928
    assert count("", base) - base["pos_embed.pos_embed"].numel() == 2_243_171_520
    assert count("", whole) == 2_943_306_560
    assert to_sd3_keys(base, "x").keys() == MMDiT(SD35_MEDIUM, Factory(device="meta")).state_dict().keys()
    found = control_params(require(whole, "control", "x"))
    check_pair(SD35_MEDIUM, found, "x")
    assert found == DiT4SRParams(depth=24, hidden_size=1536, dual_attention_blocks=tuple(range(13)))
    assert build_shapes(found) == {key: value.shape for key, value in control.items()}


def build_shapes(params: DiT4SRParams) -> dict:
    return {key: value.shape for key, value in DiT4SR(params, Factory(device="meta")).state_dict().items()}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (MMDiTParams(depth=24, hidden_size=1536), "qk_norm True instead of False"),
        (
            MMDiTParams(depth=38, hidden_size=2432, qk_norm=True),
            "depth 24 instead of 38, hidden_size 1536 instead of 2432",
        ),
        (MMDiTParams(depth=24, hidden_size=1536, qk_norm=True), "dual_attention_blocks .* instead of none"),
    ],
    ids=["SD3 medium", "SD3.5 large", "other dual blocks"],
)
def test_another_base_is_refused_by_name(base, message):
    with pytest.raises(
        CheckpointError, match=f"{message}.*; choose the base it was trained on, Stable Diffusion 3.5 medium"
    ):
        check_pair(base, control_params(require(published(), "control", "x")), "dit4sr.safetensors")


@needs_golden
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("way", ["folder", "model folder", "file or index", "any shard", "control alone"])
@torch.no_grad()
def test_every_way_to_keep_the_files_gives_the_same_control(tmp_path, way, num_shards):
    golden = Golden.load("dit4sr_v1_tiny.safetensors")
    folder = save_folder(tmp_path / "dit4sr_q" / "transformer", golden.weights, num_shards)
    name = "diffusion_pytorch_model.safetensors" + (".index.json" if num_shards > 1 else "")
    path = {
        "folder": folder,
        "model folder": folder.parent,
        "file or index": folder / name,
        "any shard": sorted(folder.glob("*.safetensors"))[-1],
        "control alone": tmp_path / "control.safetensors",
    }[way]
    save_file(
        {key: value for key, value in golden.weights.items() if is_control_key(key)}, tmp_path / "control.safetensors"
    )
    file = read_control(path)
    assert file.tensors.keys() == {key for key in golden.weights if is_control_key(key)}
    assert all(torch.equal(value, golden.weights[key]) for key, value in file.tensors.items())
    assert file.warnings == []
    assert read_control(path, device="meta").tensors.keys() == file.tensors.keys()
    control = build_control(file.tensors, file.source)
    assert {value.dtype for value in control.state_dict().values()} == {torch.float32}
    assert control.params.key_rule == "r1", "the random to_k_control are not zero"
    if way != "control alone":
        base = build_mmdit(read_transformer(path), "x", Factory(dtype=torch.float32))
        model = PsiDiT(base, with_settings(control, {"key_rule": "first"}))
        assert (model(*golden.inputs) - golden["output"]).abs().max() < TOLERANCE


@needs_golden
@pytest.mark.parametrize("most", [torch.float32, torch.float16])
def test_mixed_dtypes_become_the_one_of_most_numbers(host, most):
    few = torch.float32 if most == torch.float16 else torch.float16
    control = {key: value.to(few if key.endswith("bias") else most) for key, value in host.weights.items()}
    assert {value.dtype for value in build_control(control, "x").state_dict().values()} == {most}


@needs_golden
def test_only_the_control_is_read(tmp_path, host, monkeypatch):
    folder = save_folder(tmp_path / "transformer", host.weights, 2)
    read = []

    class Spy:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, key):
            read.append(key)
            return self.file.get_tensor(key)

    class Opened:
        def __init__(self, *args, **kwargs):
            self.opened = safe_open(*args, **kwargs)

        def __enter__(self):
            return Spy(self.opened.__enter__())

        def __exit__(self, *error):
            return self.opened.__exit__(*error)

    monkeypatch.setattr("eam_core.weight_files.safe_open", Opened)
    file = read_control(folder)
    assert sorted(read) == sorted(file.tensors) == sorted(filter(is_control_key, host.weights))
    assert file.base_samples and all(len(value) <= 64 for value in file.base_samples.values())


@needs_golden
def test_key_rule_is_told_by_zero_key_weights_and_may_be_set(host):
    zeroed = {key: value * (".to_k_control." not in key) for key, value in host.weights.items()}
    first, revised = (build_control(state, "x") for state in (zeroed, host.weights))
    assert (first.params.key_rule, revised.params.key_rule) == ("first", "r1")
    assert any("first release (dit4sr_q, dit4sr_f)" in note for note in first.params.notes)
    assert any("revised release (dit4sr_r1)" in note for note in revised.params.notes)
    assert any("non-commercial" in note and "Pi-Lab" in note for note in first.params.notes)
    changed = with_settings(first, {"key_rule": "r1", "conv_scale": "0.5"})
    assert (changed.params.key_rule, changed.params.conv_scale) == ("r1", 0.5)
    assert (first.params.key_rule, first.params.conv_scale) == ("first", 1.2)
    assert all(a is b for a, b in zip(changed.parameters(), first.parameters()))
    for settings, message in (
        ({"key_rule": "second"}, "expected a value .*key_rule"),
        ({"conv_scale": "much"}, "expected a value .*much"),
        ({"strength": 1}, r"settings that this control has \(key_rule, conv_scale\), got 'strength'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            with_settings(first, settings)


@needs_golden
@torch.no_grad()
def test_another_base_than_the_files_own_is_noticed_but_not_its_rounding(tmp_path, host):
    folder = save_folder(tmp_path / "transformer", {k: v.half() for k, v in host.weights.items()})
    file = read_control(folder)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert differing_base(file, {k: v.to(dtype) for k, v in host.base.items()}.get) is None
    key = "joint_blocks.1.x_block.attn.proj.weight"
    other = host.base[key] + 0.02 * host.base[key].std() * torch.randn(host.base[key].shape)
    sentence = differing_base(file, (host.base | {key: other}).get)
    assert sentence and key in sentence
    assert differing_base(file, (host.base | {key: other.to(torch.float8_e4m3fn)}).get) is None, "cannot be compared"
    assert differing_base(file, {}.get) is None


@needs_golden
def test_unknown_keys_are_reported_and_dead_ones_are_not(tmp_path, host):
    extra = {"transformer_blocks.0.attn3.to_q.weight": torch.zeros(4), "lora.alpha": torch.zeros(1)}
    save_file(host.weights | extra, tmp_path / "x.safetensors")
    (warning,) = read_control(tmp_path / "x.safetensors").warnings
    assert "2 tensors of unknown use, such as lora.alpha" in warning


@needs_golden
def test_half_downloads_are_refused_in_one_sentence(tmp_path, host):
    folder = save_folder(tmp_path / "transformer", host.weights, 3)
    shards = sorted(folder.glob("*.safetensors"))
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"-00002-of-00003\S* is damaged or truncated .*; download it again"):
        read_control(folder)
    shards[1].unlink()
    for path in (folder, index, shards[0]):
        with pytest.raises(CheckpointError, match=r"expected the shard \S*-00002-of-00003\S* in .* found none"):
            read_control(path)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"expected the shard \S*-00002-of-00003\S* in .* found none"):
        read_control(folder)
    shards[1].write_bytes(whole)
    assert len(read_control(folder).tensors) == sum(map(is_control_key, host.weights)), "an index is not needed"
    with pytest.raises(CheckpointError, match=r"expected a list of shards at .*, found none"):
        read_control(folder / "other.safetensors.index.json")
    for shard in shards:
        shard.unlink()
    with pytest.raises(CheckpointError, match="has none"):
        read_control(folder)


@needs_golden
def test_other_files_are_refused_by_what_they_hold(tmp_path, host):
    plain = {key: value for key, value in host.weights.items() if not (is_control_key(key) or is_dead_key(key))}
    save_file(plain, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="holds an SD3 transformer of diffusers without control weights in it"):
        read_control(tmp_path / "plain.safetensors")
    control = {key: value for key, value in host.weights.items() if is_control_key(key)}
    del control["transformer_blocks.1.attn.to_v_control.bias"]
    with pytest.raises(CheckpointError, match=r"lacks \['transformer_blocks.1.attn.to_v_control.bias'\]"):
        build_control(control, "x")
    with pytest.raises(ValueError, match="expected a control with dual_attention_blocks"):
        PsiDiT(
            MMDiT(MMDiTParams(depth=2, hidden_size=128, qk_norm=True, context_size=8, pooled_size=8)),
            build_control(host.weights, "x"),
        )


def test_other_families_need_not_share_dual_blocks():
    check_pair(SD35_MEDIUM, ControlParams(depth=24, hidden_size=1536, qk_norm=True), "x")


# A whole restoration


@needs_golden
def test_restorer_runs_it_with_its_authors_settings_and_says_what_it_is(tmp_path, tiny, host, caplog):
    folder = save_folder(tmp_path / "dit4sr_q" / "transformer", host.weights, 2)
    save_weights(tmp_path / "autoencoder.safetensors", tiny.autoencoder().state_dict())
    paths = {"base": folder, "control": folder.parent, "autoencoder": tmp_path / "autoencoder.safetensors"}
    spec = spec_of_files(paths["base"], paths["control"])
    assert (spec.steps, spec.cfg_scale, spec.tile, spec.overlap, spec.color_fix) == (40, 8.0, 512, 192, "adain")
    assert (spec.sampler, spec.scheduler, spec.sigma_start, spec.shift) == ("euler", "normal", 1.0, 3.0)
    assert [RestoreConfig.from_spec(spec, tile=tile).overlap for tile in (512, 256, 1024)] == [192, 96, 192]
    with caplog.at_level("INFO", logger="eam_core"), warnings.catch_warnings():
        warnings.simplefilter("error")
        restorer = Restorer.from_files(**paths, control_settings={"key_rule": "first"})
    assert restorer.spec is spec
    assert "non-commercial" in caplog.text and "first release" in caplog.text
    image = torch.rand(1, 3, 40, 56)
    config = RestoreConfig.from_spec(spec, scale=4, steps=2, cfg_scale=1.0, tile=128, overlap=64, tile_batch=4)
    result = restorer.restore(image, config)
    assert result.shape == (1, 3, 160, 224)
    one_by_one = restorer.restore(image, dataclasses.replace(config, tile_batch=1))
    assert torch.allclose(one_by_one, result, atol=1e-5)
    revised = Restorer.from_files(**paths).restore(image, config)
    assert not torch.allclose(revised, result, atol=1e-3)
    with pytest.warns(UserWarning, match="control_scale has no effect except at 0"):
        assert torch.equal(restorer.restore(image, dataclasses.replace(config, control_scale=0.5)), result)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = restorer.restore(image, dataclasses.replace(config, control_scale=0.0))
    assert not torch.allclose(alone, result, atol=1e-3)


@needs_golden
def test_restorer_refuses_another_base_and_warns_of_a_finetuned_one(tmp_path, tiny, host):
    torch.manual_seed(0)
    control = save_folder(tmp_path / "transformer", host.weights)
    save_weights(tmp_path / "autoencoder.safetensors", tiny.autoencoder().state_dict())
    paths = {"control": control, "autoencoder": tmp_path / "autoencoder.safetensors"}
    tuned = {key: value + 0.05 * value.std() * torch.randn(value.shape) for key, value in host.base.items()}
    save_weights(tmp_path / "tuned.safetensors", tuned)
    with pytest.warns(UserWarning, match="comes with a base of its own that differs from the one in use"):
        Restorer.from_files(base=tmp_path / "tuned.safetensors", **paths)
    params = MMDiTParams(depth=2, hidden_size=128, context_size=64, pooled_size=32, pos_embed_max_size=16)
    save_weights(tmp_path / "sd3.safetensors", MMDiT(params).state_dict())
    with pytest.raises(CheckpointError, match="qk_norm True instead of False, dual_attention_blocks 0 to 0 instead of"):
        Restorer.from_files(base=tmp_path / "sd3.safetensors", **paths)
    save_file(
        {key: value for key, value in host.weights.items() if is_control_key(key)}, tmp_path / "alone.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"SD3-family transformer, but alone\S* holds EAM control weights"):
        Restorer.from_files(base=tmp_path / "alone.safetensors", **paths)
    save_file({"conditioner.embedders.1.model.x": torch.zeros(1)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(CheckpointError, match=r"expected an SD3-family transformer, but sdxl\S* holds an SDXL"):
        Restorer.from_files(base=tmp_path / "sdxl.safetensors", **paths)


@needs_golden
def test_command_line_takes_the_folder_and_settings(tmp_path, tiny, host, capsys):
    folder = save_folder(tmp_path / "dit4sr_f" / "transformer", host.weights)
    save_weights(tmp_path / "autoencoder.safetensors", tiny.autoencoder().state_dict())
    Image.new("RGB", (32, 24), "gray").save(tmp_path / "in.png")
    model = [
        "--base",
        str(folder),
        "--control",
        str(folder),
        "--autoencoder",
        str(tmp_path / "autoencoder.safetensors"),
    ]
    fast = ["--steps", "1", "--cfg", "1", "--tile", "128", "--control-setting", "key_rule=first"]
    assert main(["upscale", str(tmp_path / "in.png"), str(tmp_path / "out.png"), *model, *fast]) == 0
    said = capsys.readouterr().err
    assert "non-commercial" in said and "first release (dit4sr_q, dit4sr_f)" in said
    assert Image.open(tmp_path / "out.png").size == (128, 96)
    assert main(["upscale", str(tmp_path / "in.png"), str(tmp_path / "x.png"), *model, *fast[:-1], "rule=1"]) == 2
    assert "expected settings that this control has" in capsys.readouterr().err


@needs_golden
@torch.no_grad()
def test_an_image_prompt_stands_around_its_blocks(host):
    """Its attention comes before the block, whoever computes that block."""
    torch.manual_seed(0)
    model = host.model()
    prompt = ImagePrompt(ImagePromptParams.for_base(model.base.params, 40))
    for tensor in prompt.state_dict().values():
        tensor.normal_(std=0.1)
    both, tokens = PsiDiT(model.base, model.control, prompt), torch.randn(2, 5, 40)
    prompted = both(*host.inputs, image_tokens=tokens)
    assert (prompted - host["output"]).abs().max() > 1e-2
    assert (both(*host.inputs, image_tokens=tokens, image_scale=0.0) - host["output"]).abs().max() < TOLERANCE
    image = prompt.embed(tokens)

    class ByHand:
        def __init__(self):
            self.run = model.control.start(host["inputs.lr_latent"], model.base.host(16, 16))

        def run_block(self, index, img, txt, vec, block):
            return self.run.run_block(index, prompt.blocks[index](img, image, vec, 1.0), txt, vec, block)

    assert torch.allclose(model.base(*host.inputs[:4], guest=ByHand()), prompted, atol=1e-5)
