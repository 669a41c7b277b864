"""The control stream's promises: nothing at first, the base untouched, memory and dropped tokens exact."""

import dataclasses
from typing import get_args

import pytest
import torch

from eam_core.lr_memory import memory_bytes
from eam_core.model import control as control_module
from eam_core.model.control import ControlParams, ControlStream, LRAttention
from eam_core.model.control_init import LRInit, init_control
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.psi_dit import PsiDiT

PLAIN = MMDiTParams(depth=3, hidden_size=128, context_size=32, pooled_size=16, pos_embed_max_size=16)
BASES = {"plain": PLAIN, "sd3.5": dataclasses.replace(PLAIN, qk_norm=True, dual_attention_blocks=(0, 1))}
MODES = get_args(LRAttention)
INITS = get_args(LRInit)
REMEMBERING = ("self", "cross")


def make_base(kind: str = "plain") -> MMDiT:
    torch.manual_seed(0)
    base = MMDiT(BASES[kind])
    for tensor in base.state_dict().values():
        tensor.normal_(std=tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.5)
    return base


def make_psi(mode: str = "joint", kind: str = "plain", *, zero_init: bool = False, lr_init: LRInit = "noisy") -> PsiDiT:
    base = make_base(kind)
    params = ControlParams(depth=3, hidden_size=128, qk_norm=base.params.qk_norm, lr_attention=mode)
    control = ControlStream(params)
    init_control(control, base.state_dict(), lr_init=lr_init, zero_init=zero_init)
    return PsiDiT(base, control)


def inputs(height: int = 11, width: int = 14) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return the base's inputs and the LR latents."""
    generator = torch.Generator().manual_seed(1)
    latents, lr = torch.randn(2, 2, 16, height, width, generator=generator)
    context = torch.randn(2, 7, 32, generator=generator)
    return (latents, torch.tensor([700.0, 200.0]), context, torch.randn(2, 16, generator=generator)), lr


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("lr_init", INITS)
@pytest.mark.parametrize("mode", MODES)
def test_zero_initialised_control_is_exactly_the_base(mode, lr_init, kind):
    given, lr = inputs()
    psi = make_psi(mode, kind, zero_init=True, lr_init=lr_init)
    assert torch.equal(psi(*given, lr), make_base(kind)(*given))


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("lr_init", INITS)
@pytest.mark.parametrize("mode", MODES)
def test_every_control_weight_learns_within_two_steps_and_the_base_never(mode, lr_init, kind):
    given, lr = inputs(6, 8)
    psi = make_psi(mode, kind, zero_init=True, lr_init=lr_init)
    before = {name: value.clone() for name, value in psi.base.state_dict().items()}
    optimizer = torch.optim.SGD(psi.control.parameters(), lr=0.1)
    learned = set()
    for _ in range(2):
        optimizer.zero_grad()
        psi(*given, lr).square().mean().backward()
        learned |= {name for name, p in psi.control.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert learned == {name for name, _ in psi.control.named_parameters()}
    assert [name for name, p in psi.base.named_parameters() if p.requires_grad or p.grad is not None] == []
    assert all(torch.equal(value, before[name]) for name, value in psi.base.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(8, 8), (4, 18), (11, 14), (13, 5), (1, 1)])
def test_any_size_and_the_lr_picture_matters(size, mode):
    given, lr = inputs(*size)
    psi = make_psi(mode)
    velocity = psi(*given, lr)
    assert velocity.shape == given[0].shape
    assert not torch.allclose(psi(*given, lr + 1), velocity, atol=1e-3)
    assert not torch.allclose(psi.base(*given), velocity, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("mode", REMEMBERING)
def test_remembered_lr_state_equals_computing_it_each_time(mode, kind):
    given, lr = inputs()
    psi = make_psi(mode, kind)
    memory = psi.remember(lr)
    for timestep in (torch.tensor([900.0, 30.0]), torch.tensor([5.0, 5.0])):
        latents, _, context, pooled = given
        expected = psi(latents, timestep, context, pooled, lr, control_scale=0.7)
        got = psi(latents, timestep, context, pooled, memory, control_scale=0.7)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("mode", REMEMBERING)
def test_what_is_remembered_takes_the_memory_that_is_counted(mode):
    psi, (_, lr) = make_psi(mode), inputs()
    parts = [part for block in psi.remember(lr) for part in block]
    held = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    assert sum(held.values()) == memory_bytes(psi.control.params, lr), "views keep alive what they are part of"


def test_a_joint_stream_cannot_remember():
    psi = make_psi("joint")
    assert not psi.control.can_remember
    with pytest.raises(ValueError, match="expected lr_attention 'self' or 'cross', got 'joint'"):
        psi.remember(inputs()[1])


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_order_of_kept_tokens_does_not_matter_and_all_is_everything(mode):
    given, lr = inputs()
    psi = make_psi(mode, "sd3.5")
    num_tokens = 6 * 7
    expected = psi(*given, lr)
    everything = torch.arange(num_tokens).expand(2, -1)
    assert torch.equal(psi(*given, lr, keep=everything), expected)
    shuffled = torch.stack([torch.randperm(num_tokens, generator=torch.Generator().manual_seed(i)) for i in (2, 3)])
    torch.testing.assert_close(psi(*given, lr, keep=shuffled), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("mode", "longest"),
    # noisy tokens: 42; a sequence that meets in one attention: 42 + 10 (joint, self), or the 10 LR tokens alone (cross)
    [("joint", 52), ("self", 52), ("cross", 10)],
)
def test_dropped_tokens_leave_the_sequence(mode, longest, monkeypatch):
    given, lr = inputs()
    psi = make_psi(mode)
    lengths = []
    plain_attention = control_module.attention

    def noting(q, k, v):
        lengths.append((q.shape[2], k.shape[2]))
        return plain_attention(q, k, v)

    monkeypatch.setattr(control_module, "attention", noting)
    keep = torch.stack([torch.arange(10), torch.arange(30, 40)])
    velocity = psi(*given, lr, keep=keep)
    assert max(keys for _, keys in lengths) == longest
    assert min(queries for queries, _ in lengths) == (42 if mode == "joint" else 10)
    assert not torch.allclose(velocity, psi(*given, lr), atol=1e-3)


@torch.no_grad()
def test_dropped_tokens_do_not_count_and_kept_ones_stay_in_place():
    given, lr = inputs(8, 8)
    psi = make_psi()
    keep = torch.tensor([[0, 1, 4], [5, 2, 7]])
    positions = psi.base.positions(8, 8)
    embedded = psi.control.embed(lr, positions)
    kept = psi.control.embed(lr, positions, keep)
    assert torch.equal(kept, torch.stack([embedded[0, [0, 1, 4]], embedded[1, [5, 2, 7]]]))
    other = lr.clone()
    other[:, :, 4:] = 9.0  # rows 4.. hold tokens 8.., which are dropped
    assert torch.equal(psi(*given, other, keep=keep), psi(*given, lr, keep=keep))


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_control_scale_is_a_dial_from_the_base(mode):
    given, lr = inputs()
    psi = make_psi(mode)
    base = make_base()(*given)
    assert torch.equal(psi(*given, lr, control_scale=0.0), base)
    distances = [(psi(*given, lr, control_scale=scale) - base).square().mean() for scale in (0.01, 0.1, 1.0)]
    assert distances[0] < distances[1] < distances[2]


@torch.no_grad()
def test_runs_do_not_share_state():
    given, lr = inputs()
    psi = make_psi()
    first = psi(*given, lr)
    psi(*given, lr + 1)
    assert torch.equal(psi(*given, lr), first)


@torch.no_grad()
@pytest.mark.parametrize(("lr_init", "stream"), [("noisy", "x_block"), ("text", "context_block")])
def test_weights_start_as_the_bases(lr_init, stream):
    psi = make_psi(lr_init=lr_init, kind="sd3.5")
    base, control = psi.base.state_dict(), psi.control.state_dict()
    for index in range(3):
        ours, theirs = f"control_blocks.{index}.", f"joint_blocks.{index}."
        qkv = base[f"{theirs}{stream}.attn.qkv.weight"]
        assert torch.equal(control[f"{ours}img_attn.qkv.weight"], base[f"{theirs}x_block.attn.qkv.weight"])
        assert torch.equal(control[f"{ours}img_out.weight"], base[f"{theirs}x_block.attn.proj.weight"])
        assert torch.equal(control[f"{ours}lr_attn.ln_k.weight"], base[f"{theirs}{stream}.attn.ln_k.weight"])
        if index < 2:
            assert torch.equal(control[f"{ours}lr_attn.qkv.weight"], qkv)
            assert torch.equal(control[f"{ours}lr_mlp.fc1.weight"], base[f"{theirs}{stream}.mlp.fc1.weight"])
        else:
            assert torch.equal(control[f"{ours}lr_attn.kv.weight"], qkv[128:])
    assert torch.equal(control["lr_embedder.proj.weight"], base["x_embedder.proj.weight"])


@torch.no_grad()
@pytest.mark.parametrize("mode", REMEMBERING)
def test_time_free_modulation_starts_at_the_bases_for_a_clean_picture_without_text(mode):
    psi = make_psi(mode)
    base = psi.base
    seen = []
    hook = base.joint_blocks[0].x_block.adaLN_modulation.register_forward_hook(lambda *call: seen.append(call[2]))
    base(torch.randn(1, 16, 4, 4), torch.zeros(1), torch.randn(1, 2, 32), torch.zeros(1, 16))
    hook.remove()
    torch.testing.assert_close(psi.control.blocks[0].lr_mod_table.flatten(), seen[0][0], atol=1e-5, rtol=1e-5)


def test_random_start_is_small_and_norms_start_at_one():
    weights = make_psi(lr_init="random", kind="sd3.5").control.state_dict()
    assert 0.015 < weights["control_blocks.0.lr_attn.qkv.weight"].std() < 0.025
    assert torch.equal(weights["control_blocks.0.lr_attn.ln_q.weight"], torch.ones(64))


def test_unknown_start_is_refused():
    with pytest.raises(ValueError, match=r"lr_init to be one of .*'text'.*, got 'nlb'"):
        make_psi(lr_init="nlb")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 4}, "base of 4 blocks like the control, got 3"),
        ({"depth": 2}, "got 3"),
        ({"hidden_size": 192}, "192"),
    ],
)
def test_start_from_a_base_of_another_size_is_refused(change, message):
    params = dataclasses.replace(ControlParams(depth=3, hidden_size=128), **change)
    with pytest.raises(ValueError, match=message):
        init_control(ControlStream(params), make_base().state_dict())


@pytest.mark.parametrize(
    "change", [{"depth": 2}, {"hidden_size": 64}, {"in_channels": 4}, {"patch_size": 1}, {"qk_norm": True}]
)
def test_control_of_another_size_is_refused(change):
    params = dataclasses.replace(ControlParams(depth=3, hidden_size=128), **change)
    (field, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"expected a control with {field} .* like its base, got {value}"):
        PsiDiT(make_base(), ControlStream(params, Factory(device="meta")))


def test_lr_latents_of_another_size_are_refused():
    given, _ = inputs(8, 8)
    with pytest.raises(ValueError, match=r"\(8, 8\), got \(8, 10\)"):
        make_psi()(*given, torch.randn(2, 16, 8, 10))


@pytest.mark.parametrize(
    ("change", "message"), [({"lr_attention": "all"}, "got 'all'"), ({"hidden_size": 100}, "multiple of 64, got 100")]
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ControlParams(**{"depth": 3, "hidden_size": 128, **change})
