"""Checkpoints: what was saved is found again whatever its size, and everything else is named."""

import itertools

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eam_core.checkpoint import (
    CHECKPOINT_PREFIX,
    build_autoencoder,
    build_control,
    build_mmdit,
    check_pair,
    control_params,
    mmdit_params,
    require,
)
from eam_core.errors import CheckpointError
from eam_core.model.autoencoder import AutoencoderParams, PatchAutoencoder
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.weight_files import read_weights, save_weights

SMALL = {"depth": 2, "hidden_size": 64, "context_size": 24, "pooled_size": 12, "pos_embed_max_size": 6}
# (depth, width, channels, qk norm)
SIZES = [(1, 64, 16, False), (2, 128, 16, True), (3, 64, 4, False), (3, 192, 8, True)]


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn(value.shape) for key, value in module.state_dict().items()}


def assert_same(got: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    assert got.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in got.state_dict().items())
    assert not got.training


@pytest.mark.parametrize("prefix", ["", CHECKPOINT_PREFIX], ids=["bare", "prefixed"])
@pytest.mark.parametrize("dual", [(), (0,), (0, 1)])
@pytest.mark.parametrize(("depth", "width", "channels", "qk_norm"), SIZES)
def test_transformer_is_found_again(tmp_path, depth, width, channels, qk_norm, dual, prefix):
    params = MMDiTParams(
        depth=depth,
        hidden_size=width,
        in_channels=channels,
        context_size=24,
        pooled_size=12,
        pos_embed_max_size=6,
        qk_norm=qk_norm,
        dual_attention_blocks=tuple(i for i in dual if i < depth),
    )
    expected = weights(MMDiT(params))
    others = {"first_stage_model.decoder.conv_in.weight": torch.zeros(1)} if prefix else {}
    save_weights(tmp_path / "x.safetensors", {prefix + key: value for key, value in expected.items()} | others)
    model = build_mmdit(read_weights(tmp_path / "x.safetensors"), "x.safetensors")
    assert model.params == params
    assert_same(model, expected)


@pytest.mark.parametrize("lr_attention", ["joint", "self", "cross"])
@pytest.mark.parametrize(("depth", "width", "channels", "qk_norm"), SIZES)
def test_control_is_found_again(tmp_path, depth, width, channels, qk_norm, lr_attention):
    params = ControlParams(
        depth=depth, hidden_size=width, in_channels=channels, qk_norm=qk_norm, lr_attention=lr_attention
    )
    expected = weights(ControlStream(params))
    save_weights(tmp_path / "x.safetensors", expected)
    control = build_control(read_weights(tmp_path / "x.safetensors"), "x.safetensors")
    assert control.params == params
    assert_same(control, expected)


@pytest.mark.parametrize(
    ("channels", "coarse", "fine"), list(itertools.product((4, 16), ((8, 1), (24, 3)), ((8, 2), (16, 0))))
)
def test_autoencoder_is_found_again(tmp_path, channels, coarse, fine):
    params = AutoencoderParams(
        latent_channels=channels,
        coarse_width=coarse[0],
        coarse_blocks=coarse[1],
        fine_width=fine[0],
        fine_blocks=fine[1],
        full_width=coarse[1] + 4,
        clean_width=coarse[0] + 8,
        clean_blocks=fine[1],
    )
    expected = weights(PatchAutoencoder(params))
    save_weights(tmp_path / "x.safetensors", expected)
    model = build_autoencoder(read_weights(tmp_path / "x.safetensors"), "x.safetensors")
    assert model.params == params
    assert_same(model, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_keep_their_dtype_or_take_the_asked_one(tmp_path, dtype):
    expected = weights(MMDiT(MMDiTParams(**SMALL)))
    save_weights(tmp_path / "x.safetensors", expected, dtype=dtype)
    state = read_weights(tmp_path / "x.safetensors")
    rounded = {key: value.to(dtype) for key, value in expected.items()}
    assert_same(build_mmdit(state, "x"), rounded)
    assert {value.dtype for value in build_mmdit(state, "x").state_dict().values()} == {dtype}
    full = build_mmdit(state, "x", Factory(dtype=torch.float32))
    assert_same(full, {key: value.float() for key, value in rounded.items()})


def test_autoencoder_works_in_full_precision_from_a_half_precision_file():
    state = {key: value.half() for key, value in weights(PatchAutoencoder(AutoencoderParams(coarse_width=8))).items()}
    picture = build_autoencoder(state, "x").decode(torch.zeros(1, 16, 2, 2))
    assert picture.dtype == torch.float32


def test_sizes_are_read_without_the_data(tmp_path):
    params = MMDiTParams(**SMALL, qk_norm=True)
    save_weights(tmp_path / "x.safetensors", weights(MMDiT(params)), dtype=torch.bfloat16)
    state = read_weights(tmp_path / "x.safetensors", device="meta")
    assert {(value.device.type, value.dtype) for value in state.values()} == {("meta", torch.bfloat16)}
    assert mmdit_params(state) == params


def some(*keys: str) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(1) for key in keys}


OTHERS = {
    "SDXL": (
        some("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight"),
        "an SDXL model",
    ),
    "SDXL of diffusers": (some("down_blocks.0.resnets.0.conv1.weight", "add_embedding.linear_1.weight"), "an SDXL"),
    "Flux": (some("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"), "a Flux model"),
    "Flux with prefix": (some("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"), "a Flux model"),
    "LoRA": (some("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"), "a LoRA"),
    "LoRA of diffusers": (some("transformer.transformer_blocks.0.attn.to_k.lora_A.weight"), "a LoRA"),
    "SD1": (
        some("cond_stage_model.transformer.x", "model.diffusion_model.input_blocks.0.0.weight"),
        "a Stable Diffusion 1 or 2 model",
    ),
    "CLIP": (some("text_model.encoder.layers.0.mlp.fc1.weight"), "text encoder weights"),
    "T5": (some("encoder.block.0.layer.0.SelfAttention.q.weight"), "text encoder weights"),
    "VAE": (some("decoder.up.0.block.0.conv1.weight", "encoder.conv_in.weight"), "autoencoder weights of another"),
    "strange": (some("b", "a"), "something unknown (2 tensors, first key 'a')"),
    "empty": ({}, "something unknown (0 tensors"),
}


@pytest.mark.parametrize(("state", "name"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (build_mmdit, "an SD3-family transformer"),
        (build_control, "EAM control weights"),
        (build_autoencoder, "an EAM autoencoder"),
    ],
)
def test_other_models_are_named(state, name, build, wanted):
    with pytest.raises(CheckpointError) as error:
        build(state, "mine.safetensors")
    assert str(error.value).startswith(f"expected {wanted}, but mine.safetensors holds {name}")
    assert str(error.value).endswith("; choose a file of the right kind")


def test_own_kinds_are_told_apart():
    base = {CHECKPOINT_PREFIX + key: value for key, value in weights(MMDiT(MMDiTParams(**SMALL))).items()}
    base |= some("text_encoders.clip_l.transformer.text_model.encoder.x", "first_stage_model.decoder.up.0.x")
    control = weights(ControlStream(ControlParams(depth=2, hidden_size=64)))
    for build, state, holds in (
        (build_control, base, "an SD3-family transformer"),
        (build_mmdit, control, "EAM control weights"),
        (build_control, weights(PatchAutoencoder(AutoencoderParams(coarse_width=8))), "an EAM autoencoder"),
    ):
        with pytest.raises(CheckpointError, match=f"but x holds {holds}; choose"):
            build(state, "x")


KINDS = {
    "transformer": (build_mmdit, lambda: MMDiT(MMDiTParams(**SMALL, qk_norm=True, dual_attention_blocks=(0,)))),
    "control": (build_control, lambda: ControlStream(ControlParams(depth=2, hidden_size=64, lr_attention="self"))),
    "autoencoder": (build_autoencoder, lambda: PatchAutoencoder(AutoencoderParams(coarse_width=8, fine_width=8))),
}


@pytest.mark.parametrize(("build", "make"), KINDS.values(), ids=KINDS)
def test_every_missing_or_misshapen_tensor_is_refused(build, make):
    state = weights(make())
    for key in state:
        with pytest.raises(CheckpointError, match=r"^expected .* x "):
            build({k: v for k, v in state.items() if k != key}, "x")
        for wrong in (torch.zeros(()), torch.zeros(*state[key].shape, 2)):
            with pytest.raises(CheckpointError, match=r"^expected .* x "):
                build({**state, key: wrong}, "x")


@pytest.mark.parametrize(("build", "make"), KINDS.values(), ids=KINDS)
def test_messages_name_the_first_missing_extra_and_misshapen_keys(build, make):
    state = weights(make())
    last = max(key for key in state if key.endswith("bias"))
    incomplete = {key: value for key, value in state.items() if key != last} | some("odd.weight")
    with pytest.raises(
        CheckpointError, match=rf"x lacks \['{last}'\] and adds \['odd.weight'\]; the file is incomplete"
    ):
        build(incomplete, "x")
    with pytest.raises(CheckpointError, match=rf"expected {last} of shape \(\d+,\), but x has \(7,\); the file is"):
        build({**state, last: torch.zeros(7)}, "x")


def test_a_missing_block_is_refused():
    state = weights(MMDiT(MMDiTParams(**{**SMALL, "depth": 3})))
    without = {key: value for key, value in state.items() if not key.startswith("joint_blocks.1.")}
    with pytest.raises(CheckpointError, match=r"x lacks \['joint_blocks\.1\."):
        build_mmdit(without, "x")
    with pytest.raises(CheckpointError, match=r"lacks"):
        build_mmdit(state | some("joint_blocks.1000000000.x"), "x")
    with pytest.raises(CheckpointError, match=r"lacks"):
        build_mmdit(state | some("joint_blocks.first.x"), "x")


def test_a_wide_claim_takes_no_memory():
    state = weights(MMDiT(MMDiTParams(**SMALL)))
    state["x_embedder.proj.weight"] = torch.zeros(64 * 1000, 1, 1, 1)  # would make linear layers of 100 GB
    with pytest.raises(CheckpointError, match=r"expected .* of shape"):
        build_mmdit(state, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, "depth 3 instead of 2"),
        ({"hidden_size": 128}, "hidden_size 128 instead of 64"),
        ({"in_channels": 4}, "in_channels 4 instead of 16"),
        ({"qk_norm": True}, "qk_norm True instead of False"),
        ({"depth": 3, "hidden_size": 128}, "depth 3 instead of 2, hidden_size 128 instead of 64"),
    ],
)
def test_control_for_another_base_is_refused(change, message):
    control = ControlParams(**{"depth": 2, "hidden_size": 64, **change})
    assert control_params(ControlStream(control, Factory(device="meta")).state_dict()) == control
    with pytest.raises(CheckpointError) as error:
        check_pair(MMDiTParams(**SMALL), control, "c.safetensors")
    assert "(width 64 = 1 heads, 2 blocks), but c.safetensors was trained for another" in str(error.value)
    assert f": {message}; choose the base it was trained on" in str(error.value)


def test_control_of_the_same_size_passes():
    for lr_attention in ("joint", "self", "cross"):
        check_pair(MMDiTParams(**SMALL), ControlParams(depth=2, hidden_size=64, lr_attention=lr_attention), "c")


def test_require_takes_the_transformer_out_of_a_whole_checkpoint():
    inner = weights(MMDiT(MMDiTParams(**SMALL)))
    whole = {CHECKPOINT_PREFIX + key: value for key, value in inner.items()} | some("text_encoders.x")
    assert require(whole, "mmdit", "x").keys() == inner.keys()
    assert require(inner, "mmdit", "x").keys() == inner.keys()


def test_files_of_the_plain_library_are_read(tmp_path):
    expected = weights(ControlStream(ControlParams(depth=1, hidden_size=64)))
    save_file(expected, tmp_path / "x.safetensors")
    assert_same(build_control(read_weights(tmp_path / "x.safetensors"), "x"), expected)
