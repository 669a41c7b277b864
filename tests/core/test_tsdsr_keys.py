"""TSD-SR at its real size, on the meta device: which weights its two files change, under which names and shapes."""

import pytest
import torch
from torch import Tensor

from eam_core.checkpoint import build_control, check_pair, control_params, describe
from eam_core.errors import CheckpointError
from eam_core.lora import check_changes, encoder_changes, merge, transformer_changes
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.tsdsr import DOWN, LORA_PREFIX, UP, TSDSRParams, lora_modules, student_modules

REAL = MMDiTParams(depth=24, hidden_size=1536)
RANK = 64


def lora(modules: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[str, Tensor]:
    return {
        f"{LORA_PREFIX}{module}{end}": torch.empty(shape, device="meta")
        for module, shapes in modules.items()
        for end, shape in zip((DOWN, UP), shapes)
    }


def real_transformer(depth: int = 24, size: int = 1536) -> dict[str, Tensor]:
    """The published transformer.safetensors from the tables of the model's description, not from our code."""
    modules = {
        "pos_embed.proj": ((RANK, 16, 2, 2), (size, RANK, 1, 1)),
        "norm_out.linear": ((RANK, size), (2 * size, RANK)),
        "proj_out": ((RANK, size), (64, RANK)),
    }
    for n in range(depth):
        outputs = {f"attn.{name}": size for name in ("to_q", "to_k", "to_v", "to_out.0")}
        outputs |= {f"attn.add_{name}_proj": size for name in "qkv"}
        outputs |= {"norm1.linear": 6 * size, "norm1_context.linear": (2 if n == depth - 1 else 6) * size}
        outputs |= {"ff.net.0.proj": 4 * size} | ({} if n == depth - 1 else {"ff_context.net.0.proj": 4 * size})
        modules |= {f"transformer_blocks.{n}.{name}": ((RANK, size), (out, RANK)) for name, out in outputs.items()}
    return lora(modules)


def real_encoder() -> dict[str, Tensor]:
    """The published vae.safetensors, likewise."""
    channels = (128, 256, 512, 512)
    convs = {"conv_in": (3, 128, 3), "conv_out": (512, 32, 3)}
    for i, out in enumerate(channels):
        before = channels[max(i - 1, 0)]
        for j in range(2):
            convs[f"down_blocks.{i}.resnets.{j}.conv1"] = (before if j == 0 else out, out, 3)
            convs[f"down_blocks.{i}.resnets.{j}.conv2"] = (out, out, 3)
        if before != out:
            convs[f"down_blocks.{i}.resnets.0.conv_shortcut"] = (before, out, 1)
        if i < 3:
            convs[f"down_blocks.{i}.downsamplers.0.conv"] = (out, out, 3)
    convs |= {f"mid_block.resnets.{j}.conv{c}": (512, 512, 3) for j in range(2) for c in (1, 2)}
    modules = {
        f"encoder.{name}": ((RANK, taken, side, side), (out, RANK, 1, 1)) for name, (taken, out, side) in convs.items()
    }
    attention = ("to_q", "to_k", "to_v", "to_out.0")
    modules |= {f"encoder.mid_block.attentions.0.{name}": ((RANK, 512), (512, RANK)) for name in attention}
    return lora(modules)


def real_autoencoder(diffusers) -> dict[str, Tensor]:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16}
    with torch.device("meta"):
        vae = diffusers.AutoencoderKL(**kinds, **sizes, use_quant_conv=False, use_post_quant_conv=False)
    return vae.state_dict()


def test_transformer_contract_at_the_real_size():
    state = real_transformer()
    assert (len(state), sum(value.numel() for value in state.values())) == (532, 89_268_224)
    params = control_params(state)
    assert params == TSDSRParams(depth=24, hidden_size=1536)
    assert student_modules(24) == lora_modules(state) and len(lora_modules(state)) == 266
    changes = transformer_changes(state, "x")
    base = MMDiT(REAL, Factory(device="meta")).state_dict()
    check_changes(changes, {key: value.shape for key, value in base.items()}, "x")
    assert len({change.key for change in changes}) == 170
    swapped = {change.key for change in changes if change.swapped}
    assert swapped == {
        "final_layer.adaLN_modulation.1.weight",
        "joint_blocks.23.context_block.adaLN_modulation.1.weight",
    }
    rows = {change.rows for change in changes if change.key == "joint_blocks.7.context_block.attn.qkv.weight"}
    assert rows == {(0, 1536), (1536, 1536), (3072, 1536)}
    untouched = ("context_block.attn.proj", "mlp.fc2", "context_embedder", "t_embedder", "y_embedder", "bias")
    assert not any(part in change.key for change in changes for part in untouched)
    check_pair(REAL, params, "x")


def test_encoder_contract_at_the_real_size(diffusers):
    state = real_encoder()
    assert (len(state), sum(value.numel() for value in state.values())) == (62, 5_910_208)
    changes = encoder_changes(state, "x")
    assert len({change.key for change in changes}) == len(changes) == 31
    shapes = {key: value.shape for key, value in real_autoencoder(diffusers).items()}
    assert sum(value.numel() for value in real_autoencoder(diffusers).values()) == 83_819_683
    check_changes(
        [type(c)(module=c.module, key=f"{c.module}.weight", down=c.down, up=c.up) for c in changes], shapes, "x"
    )
    assert not any("norm" in change.key or change.key.startswith("decoder") for change in changes)


def test_rank_and_dtype_come_from_the_file():
    generator = torch.Generator().manual_seed(0)
    module = "transformer_blocks.0.attn.to_k"
    state = {
        f"{LORA_PREFIX}{module}{DOWN}": torch.randn(5, 64, generator=generator).half(),
        f"{LORA_PREFIX}{module}{UP}": torch.randn(64, 5, generator=generator).bfloat16(),
    }
    (change,) = transformer_changes(state, "x")
    weights = torch.randn(192, 64, generator=generator)
    for dtype in (torch.float32, torch.float16, torch.float8_e4m3fn):
        base = {"joint_blocks.0.x_block.attn.qkv.weight": weights.to(dtype)}
        exact = base["joint_blocks.0.x_block.attn.qkv.weight"].float().clone()
        exact[64:128] += state[f"{LORA_PREFIX}{module}{UP}"].float() @ state[f"{LORA_PREFIX}{module}{DOWN}"].float()
        (merged,) = merge(base, [change], "x", torch.bfloat16).values()
        assert (merged == exact.bfloat16()).float().mean() > 0.99, "more than a tie of rounding here and there"
        assert torch.equal(base["joint_blocks.0.x_block.attn.qkv.weight"].float(), weights.to(dtype).float())


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            MMDiTParams(depth=24, hidden_size=1536, qk_norm=True, dual_attention_blocks=(0,)),
            "qk_norm False instead of True",
        ),
        (MMDiTParams(depth=38, hidden_size=2432, qk_norm=True), "depth 24 instead of 38"),
    ],
    ids=["sd3.5-medium", "sd3.5-large"],
)
def test_other_bases_of_the_family_are_refused(base, message):
    with pytest.raises(CheckpointError, match=message):
        check_pair(base, control_params(real_transformer()), "transformer.safetensors")


def test_style_lora_is_no_control():
    state = {f"transformer.single_transformer_blocks.0.attn.to_q.lora_{x}.weight": torch.zeros(4, 4) for x in "AB"}
    with pytest.raises(CheckpointError, match="holds a LoRA"):
        build_control(state | {"transformer.x_embedder.lora_A.weight": torch.zeros(4, 4)}, "style.safetensors")
    assert describe(real_encoder()).startswith("TSD-SR's LoRA of the autoencoder")
