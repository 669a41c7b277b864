"""DiT4SR's files: the published keys and shapes, every way to keep them, and what is refused."""

import pytest
import torch
from dit4sr_golden import SD35_MEDIUM, TOLERANCE, Golden, needs_golden, save_folder
from safetensors import safe_open
from safetensors.torch import save_file

from eam_core.checkpoint import build_control, build_mmdit, check_pair, control_params, require, with_settings
from eam_core.control_files import differing_base, read_control
from eam_core.diffusers_keys import is_diffusers_key, read_transformer, to_sd3_keys
from eam_core.errors import CheckpointError
from eam_core.model.control import ControlParams
from eam_core.model.dit4sr import DiT4SR, DiT4SRParams, is_control_key, is_dead_key
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.psi_dit import PsiDiT


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
def test_mixed_dtypes_become_the_one_of_most_numbers(dit4sr, most):
    few = torch.float32 if most == torch.float16 else torch.float16
    control = {key: value.to(few if key.endswith("bias") else most) for key, value in dit4sr.weights.items()}
    assert {value.dtype for value in build_control(control, "x").state_dict().values()} == {most}


@needs_golden
def test_only_the_control_is_read(tmp_path, dit4sr, monkeypatch):
    folder = save_folder(tmp_path / "transformer", dit4sr.weights, 2)
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
    assert sorted(read) == sorted(file.tensors) == sorted(filter(is_control_key, dit4sr.weights))
    assert file.base_samples and all(len(value) <= 64 for value in file.base_samples.values())


@needs_golden
def test_key_rule_is_told_by_zero_key_weights_and_may_be_set(dit4sr):
    zeroed = {key: value * (".to_k_control." not in key) for key, value in dit4sr.weights.items()}
    first, revised = (build_control(state, "x") for state in (zeroed, dit4sr.weights))
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
def test_another_base_than_the_files_own_is_noticed_but_not_its_rounding(tmp_path, dit4sr):
    folder = save_folder(tmp_path / "transformer", {k: v.half() for k, v in dit4sr.weights.items()})
    file = read_control(folder)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert differing_base(file, {k: v.to(dtype) for k, v in dit4sr.base.items()}.get) is None
    key = "joint_blocks.1.x_block.attn.proj.weight"
    other = dit4sr.base[key] + 0.02 * dit4sr.base[key].std() * torch.randn(dit4sr.base[key].shape)
    sentence = differing_base(file, (dit4sr.base | {key: other}).get)
    assert sentence and key in sentence
    assert differing_base(file, (dit4sr.base | {key: other.to(torch.float8_e4m3fn)}).get) is None, "cannot be compared"
    assert differing_base(file, {}.get) is None


@needs_golden
def test_unknown_keys_are_reported_and_dead_ones_are_not(tmp_path, dit4sr):
    extra = {"transformer_blocks.0.attn3.to_q.weight": torch.zeros(4), "lora.alpha": torch.zeros(1)}
    save_file(dit4sr.weights | extra, tmp_path / "x.safetensors")
    (warning,) = read_control(tmp_path / "x.safetensors").warnings
    assert "2 tensors of unknown use, such as lora.alpha" in warning


@needs_golden
def test_half_downloads_are_refused_in_one_sentence(tmp_path, dit4sr):
    folder = save_folder(tmp_path / "transformer", dit4sr.weights, 3)
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
    assert len(read_control(folder).tensors) == sum(map(is_control_key, dit4sr.weights)), "an index is not needed"
    with pytest.raises(CheckpointError, match=r"expected a list of shards at .*, found none"):
        read_control(folder / "other.safetensors.index.json")
    for shard in shards:
        shard.unlink()
    with pytest.raises(CheckpointError, match="has none"):
        read_control(folder)


@needs_golden
def test_other_files_are_refused_by_what_they_hold(tmp_path, dit4sr):
    plain = {key: value for key, value in dit4sr.weights.items() if not (is_control_key(key) or is_dead_key(key))}
    save_file(plain, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="holds an SD3 transformer of diffusers without control weights in it"):
        read_control(tmp_path / "plain.safetensors")
    control = {key: value for key, value in dit4sr.weights.items() if is_control_key(key)}
    del control["transformer_blocks.1.attn.to_v_control.bias"]
    with pytest.raises(CheckpointError, match=r"lacks \['transformer_blocks.1.attn.to_v_control.bias'\]"):
        build_control(control, "x")
    with pytest.raises(ValueError, match="expected a control with dual_attention_blocks"):
        PsiDiT(
            MMDiT(MMDiTParams(depth=2, hidden_size=128, qk_norm=True, context_size=8, pooled_size=8)),
            build_control(dit4sr.weights, "x"),
        )


def test_other_families_need_not_share_dual_blocks():
    check_pair(SD35_MEDIUM, ControlParams(depth=24, hidden_size=1536, qk_norm=True), "x")
