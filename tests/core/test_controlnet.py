"""DiT-ControlNet's network: the base at first, and diffusers' ControlNet in numbers."""

import dataclasses

import pytest
import torch
from controlnet_models import BASES, NUM_BLOCKS, PLAIN, SMALL, fresh, inputs, random_, trained
from peer_mmdit import diffusers_mmdit

from eam_core.diffusers_keys import to_sd3_keys
from eam_core.model.control_init import init_controlnet
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.model.mmdit import MMDiT
from eam_core.model.psi_dit import PsiDiT
from eam_core.model.recompute import RecomputedGuest


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("num_blocks", NUM_BLOCKS)
def test_fresh_controlnet_is_exactly_the_base(num_blocks, kind):
    given, lr = inputs()
    psi = fresh(num_blocks, kind)
    assert torch.equal(psi(*given, lr), psi.base(*given))


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("num_blocks", NUM_BLOCKS)
def test_first_step_changes_the_output_and_the_second_moves_every_weight(num_blocks, kind):
    given, lr = inputs(6, 8)
    psi = fresh(num_blocks, kind)
    start = {name: value.clone() for name, value in psi.state_dict().items()}
    optimizer = torch.optim.SGD(psi.control.parameters(), lr=0.1)
    outputs = []
    for _ in range(2):
        optimizer.zero_grad()
        outputs.append(psi(*given, lr))
        outputs[-1].square().mean().backward()
        optimizer.step()
    assert not torch.equal(*outputs)
    moved = {name for name, value in psi.state_dict().items() if not torch.equal(value, start[name])}
    # SD3's layout has text queries in a pre-only block as well, and a norm for them; nobody reads their result.
    idle = {f"controlnet_blocks.{num_blocks - 1}.context_block.attn.ln_q.weight"}
    assert moved == {f"control.{name}" for name, _ in psi.control.named_parameters() if name not in idle}
    assert all(parameter.grad is not None for parameter in psi.control.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("num_blocks", NUM_BLOCKS)
def test_copies_start_as_the_bases_first_blocks(num_blocks, kind):
    psi = fresh(num_blocks, kind)
    base, control = psi.base.state_dict(), psi.control.state_dict()
    copied = {key: value for key, value in control.items() if key.startswith("controlnet_blocks.")}
    for key, value in copied.items():
        assert torch.equal(value, base[key.replace("controlnet", "joint")][: len(value)])
    # Nobody reads the last copy's text, so all that follows its attention is left out; else the copies are whole.
    blocks = [key for key in base if key.startswith("joint_blocks.") and int(key.split(".")[1]) < num_blocks]
    left_out = {key.removeprefix("joint_") for key in blocks} - {key.removeprefix("controlnet_") for key in copied}
    unread = () if num_blocks == PLAIN.depth else ("attn.proj", "mlp.fc1", "mlp.fc2")
    assert left_out == {
        f"blocks.{num_blocks - 1}.context_block.{layer}.{part}" for layer in unread for part in ("weight", "bias")
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize(("depth", "num_blocks"), [(6, 1), (6, 2), (6, 3), (7, 3), (5, 2)])
def test_numbers_are_those_of_diffusers(diffusers, depth, num_blocks, kind):
    params = dataclasses.replace(BASES[kind], depth=depth)
    torch.manual_seed(0)
    transformer = diffusers_mmdit(params)
    random_(transformer)
    reference = diffusers.SD3ControlNetModel.from_transformer(
        transformer, num_layers=num_blocks, num_extra_conditioning_channels=0
    ).eval()
    random_(reference.controlnet_blocks)
    random_(reference.pos_embed_input)

    base = MMDiT(params)
    base.load_state_dict(to_sd3_keys(transformer.state_dict(), "reference"))
    control = ControlNet(ControlNetParams.for_base(params, num_blocks))
    init_controlnet(control, base.state_dict())
    control.zero_linears.load_state_dict(reference.controlnet_blocks.state_dict())
    control.lr_embedder.load_state_dict(reference.pos_embed_input.state_dict())

    (latents, timestep, context, pooled), lr = inputs(8, 12)
    samples = reference(latents, lr, 0.7, context, pooled, timestep, return_dict=False)[0]
    expected = transformer(latents, context, pooled, timestep, block_controlnet_hidden_states=samples).sample
    got = PsiDiT(base, control)(latents, timestep, context, pooled, lr, control_scale=0.7)
    assert (expected - base(latents, timestep, context, pooled)).std() > 0.1, "the control does nothing"
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("depth", "num_blocks", "received"),
    [
        (24, 6, [b // 4 for b in range(23)] + [None]),
        (24, 12, [b // 2 for b in range(23)] + [None]),
        (24, 24, list(range(24))),  # else the last copy could never learn
        (5, 2, [0, 0, 0, 1, None]),
        (5, 4, [0, 0, 1, 2, 3]),
        (1, 1, [0]),
    ],
)
def test_each_block_receives_the_output_of_its_copy(depth, num_blocks, received):
    control = random_(ControlNet(ControlNetParams(depth=depth, hidden_size=64, num_blocks=num_blocks)))
    control.block_scales.copy_(ControlNet(control.params).block_scales)
    for index, linear in enumerate(control.zero_linears):
        linear.weight.zero_()
        linear.bias.zero_()[index] = 1
    run = control.run(torch.randn(1, 4, 64))
    img, txt, vec = torch.randn(1, 4, 64), torch.randn(1, 3, 64), torch.randn(1, 64)
    for index, copy in enumerate(received):
        new, _ = run.run_block(index, img, txt, vec, lambda img, txt, vec: (img, txt))
        added = (new - img).round().amax(dim=(0, 1))
        assert added.nonzero().flatten().tolist() == ([] if copy is None else [copy])


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (4, 18), (11, 14), (13, 5), (1, 1)])
def test_any_size_and_the_lr_picture_matters(size):
    given, lr = inputs(*size)
    psi = trained(2)
    velocity = psi(*given, lr)
    assert velocity.shape == given[0].shape
    assert not torch.allclose(psi(*given, lr + 1), velocity, atol=1e-3)
    assert not torch.allclose(psi.base(*given), velocity, atol=1e-3)


@torch.no_grad()
def test_control_scale_is_a_dial_from_the_base():
    given, lr = inputs()
    psi = trained(2)
    base = psi.base(*given)
    assert torch.equal(psi(*given, lr, control_scale=0.0), base)
    distances = [(psi(*given, lr, control_scale=scale) - base).square().mean() for scale in (0.01, 0.1, 1.0)]
    assert distances[0] < distances[1] < distances[2]


@torch.no_grad()
def test_only_kept_lr_tokens_count_and_they_stay_in_place():
    given, lr = inputs(8, 8)
    psi = trained(2)
    tokens = psi.control.embed(lr, psi.base.positions(8, 8))
    keep = torch.tensor([[0, 1, 4], [5, 2, 7]])
    kept = psi.control.embed(lr, psi.base.positions(8, 8), keep)
    for sample, indices in enumerate(keep.tolist()):
        for place in range(16):
            expected = tokens[sample, place] if place in indices else torch.zeros(128)
            assert torch.equal(kept[sample, place], expected)
    everything = torch.arange(16).expand(2, -1)
    assert torch.equal(psi(*given, lr, keep=everything), psi(*given, lr))
    assert not torch.allclose(psi(*given, lr, keep=keep), psi(*given, lr), atol=1e-3)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("num_blocks", NUM_BLOCKS)
def test_blocks_computed_twice_give_the_same_gradients(num_blocks, kind):
    given, lr = inputs(6, 8)
    psi = trained(num_blocks, kind)
    gradients = []
    for wrap in (lambda guest: guest, RecomputedGuest):
        guest = wrap(psi.control.run(psi.control.embed(lr, psi.base.positions(6, 8))))
        loss = psi.base(*given, guest=guest).square().mean()
        gradients.append(torch.autograd.grad(loss, list(psi.control.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients))


@torch.no_grad()
def test_copies_run_even_where_the_host_skips_their_blocks():
    control = trained(4).control
    img, txt, vec, lr = torch.randn(1, 6, 128), torch.randn(1, 3, 128), torch.randn(1, 128), torch.randn(1, 6, 128)
    whole, skipping = control.run(lr), control.run(lr)
    for run, visited in ((whole, (0, 1, 2)), (skipping, (2,))):
        for index in visited:
            result = run.run_block(index, img, txt, vec, lambda img, txt, vec: (img, txt))
    assert torch.equal(result[0], img + whole.state[2])
    assert all(torch.equal(*pair) for pair in zip(whole.state, skipping.state))


def test_a_controlnet_cannot_remember():
    psi = fresh(2)
    assert not psi.control.can_remember
    with pytest.raises(ValueError, match="LR state is the same at every step, got a ControlNet"):
        psi.remember(inputs()[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": 4}, "num_blocks from 1 to the base's 3 blocks, got 4"),
        ({"num_blocks": 0}, "got 0"),
        ({"dual_attention_blocks": (2,)}, "dual_attention_blocks below 2, got"),
        ({"hidden_size": 100}, "multiple of 64, got 100"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"depth": 3}, "base of 3 blocks like the control, got 4"), ({"hidden_size": 64}, r"of shape \(\d+, 64\)")],
)
def test_start_from_a_base_of_another_size_is_refused(change, message):
    control = ControlNet(dataclasses.replace(ControlNetParams.for_base(PLAIN, 2), **change))
    with pytest.raises(ValueError, match=message):
        init_controlnet(control, MMDiT(PLAIN).state_dict())
