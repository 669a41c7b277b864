"""SD3 transformers from diffusers: same numbers under our names, from a file, a folder or shards."""

import json

import pytest
import torch
from safetensors.torch import save_file

from eam_core.checkpoint import build_mmdit
from eam_core.diffusers_keys import is_diffusers_sd3, read_transformer, to_sd3_keys
from eam_core.errors import CheckpointError

# The traits of each family, at a size that runs in a moment.
FAMILIES = {
    "sd3-medium": {},
    "sd3.5-medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "sd3.5-large": {"qk_norm": "rms_norm", "num_layers": 4},
}


def make(diffusers, **changes):
    torch.manual_seed(0)
    sizes = {
        "sample_size": 16,
        "num_layers": 3,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 128,
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 12,
    }
    model = diffusers.SD3Transformer2DModel(**sizes | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, so that a swap of any two shows
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


@pytest.fixture(scope="module")
def small(diffusers):
    return make(diffusers, qk_norm="rms_norm", dual_attention_layers=(0,))


@pytest.mark.parametrize("family", FAMILIES)
def test_velocity_equals_diffusers(diffusers, family):
    theirs = make(diffusers, **FAMILIES[family])
    ours = build_mmdit(to_sd3_keys(theirs.state_dict(), family), family)
    latents, context, pooled = torch.randn(2, 16, 10, 14), torch.randn(2, 5, 32), torch.randn(2, 24)
    timestep = torch.tensor([870.0, 12.5])
    with torch.no_grad():
        expected = theirs(latents, context, pooled, timestep, return_dict=False)[0]
        got = ours(latents, timestep, context, pooled)
    assert expected.std() > 0.1
    assert (got - expected).abs().max() < 1e-5


def test_folder_whole_or_sharded_gives_the_same_weights(small, tmp_path):
    expected = to_sd3_keys(small.state_dict(), "memory")
    small.save_pretrained(tmp_path / "whole")
    small.save_pretrained(tmp_path / "pipeline" / "transformer", max_shard_size="500KB")
    assert len(list((tmp_path / "pipeline" / "transformer").glob("*.safetensors"))) > 1
    for folder in ("whole", "pipeline"):
        state = read_transformer(tmp_path / folder)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_file_in_diffusers_keys_is_renamed(small, tmp_path):
    save_file(small.state_dict(), tmp_path / "t.safetensors")
    assert is_diffusers_sd3(small.state_dict())
    assert read_transformer(tmp_path / "t.safetensors").keys() == to_sd3_keys(small.state_dict(), "x").keys()


def test_file_in_sd3_keys_stays(small, tmp_path):
    state = to_sd3_keys(small.state_dict(), "x")
    save_file(state, tmp_path / "t.safetensors")
    assert read_transformer(tmp_path / "t.safetensors").keys() == state.keys()


def test_missing_part_and_unknown_key_are_named(small):
    state = small.state_dict()
    with pytest.raises(CheckpointError, match="mystery"):
        to_sd3_keys(state | {"transformer_blocks.0.mystery.weight": torch.zeros(1)}, "x")
    del state["transformer_blocks.1.attn.to_k.weight"]
    with pytest.raises(CheckpointError, match=r"joint_blocks\.1\.x_block\.attn\.qkv\.weight"):
        to_sd3_keys(state, "x")


def test_bad_folders_are_refused(small, tmp_path):
    folder = tmp_path / "transformer"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="has none"):
        read_transformer(folder)
    small.save_pretrained(folder, max_shard_size="500KB")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_transformer(folder)


def test_shards_outside_of_the_folder_are_not_read(small, tmp_path):
    small.save_pretrained(tmp_path / "folder", max_shard_size="500KB")
    save_file(small.state_dict(), tmp_path / "outside.safetensors")
    index = tmp_path / "folder" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"pos_embed.proj.weight": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match="no name of a file beside it"):
        read_transformer(tmp_path / "folder")
