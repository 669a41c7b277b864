"""The frozen base: any size, SD3's positions and time, one guest around its blocks."""

import dataclasses

import pytest
import torch
from torch import nn

from eam_core.model.layers import Factory, sincos_position_table, timestep_embedding
from eam_core.model.mmdit import MMDiT, MMDiTParams

SMALL = MMDiTParams(depth=2, hidden_size=128, context_size=24, pooled_size=12, pos_embed_max_size=10)
VARIANTS = {
    "plain": SMALL,
    "qk norm": dataclasses.replace(SMALL, qk_norm=True),
    "qk norm and dual attention": dataclasses.replace(SMALL, qk_norm=True, dual_attention_blocks=(0,)),
}


def randomized(params: MMDiTParams) -> MMDiT:
    torch.manual_seed(0)
    model = MMDiT(params)
    for tensor in model.state_dict().values():
        tensor.normal_(std=tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.5)
    return model.eval()


def inputs(params: MMDiTParams, height: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, params.in_channels, height, width, generator=generator),
        torch.tensor([700.0, 200.0]),
        torch.randn(2, 5, params.context_size, generator=generator),
        torch.randn(2, params.pooled_size, generator=generator),
    )


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (6, 14), (11, 14), (13, 5), (1, 1), (20, 20)])
def test_output_has_the_size_of_the_latents(size):
    latents, *rest = inputs(SMALL, *size)
    velocity = randomized(SMALL)(latents, *rest)
    assert velocity.shape == latents.shape
    assert velocity.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("params", VARIANTS.values(), ids=VARIANTS)
def test_every_input_reaches_the_output(params):
    model, given = randomized(params), inputs(params, 6, 8)
    expected = model(*given)
    for index, name in enumerate(("latents", "timestep", "context", "pooled")):
        changed = [x + 1 if i == index else x for i, x in enumerate(given)]
        assert not torch.allclose(model(*changed), expected, atol=1e-3), name


@torch.no_grad()
@pytest.mark.parametrize("params", VARIANTS.values(), ids=VARIANTS)
def test_samples_of_a_batch_do_not_mix(params):
    model, given = randomized(params), inputs(params, 7, 9)
    alone = torch.cat([model(*(x[i : i + 1] for x in given)) for i in range(2)])
    torch.testing.assert_close(model(*given), alone, atol=1e-5, rtol=1e-5)


def test_positions_are_the_middle_of_the_table_row_by_row():
    model = MMDiT(SMALL)
    model.pos_embed.copy_(torch.arange(100.0)[None, :, None].expand_as(model.pos_embed))
    assert model.positions(4, 8)[0, :, 0].tolist() == [43, 44, 45, 46, 53, 54, 55, 56]
    assert model.positions(3, 5)[0, :, 0].tolist() == [43, 44, 45, 53, 54, 55]
    assert model.positions(4, 4, offset=(7, 1))[0, :, 0].tolist() == [71, 72, 81, 82]


@pytest.mark.parametrize("size", [(21, 4), (4, 22)])
def test_latents_beyond_the_position_table_are_refused(size):
    with pytest.raises(ValueError, match=f"at most 20 x 20, got {size[0]} x {size[1]}; use tiles"):
        randomized(SMALL)(*inputs(SMALL, *size))


@torch.no_grad()
def test_given_positions_replace_the_middle_of_the_table():
    model, given = randomized(SMALL), inputs(SMALL, 6, 8)
    corner = model.positions(6, 8, offset=(0, 0))
    assert torch.equal(model(*given, positions=model.positions(6, 8)), model(*given))
    assert not torch.allclose(model(*given, positions=corner), model(*given), atol=1e-3)


class Recorder:
    """A guest that notes what it sees and runs each block as it is."""

    def __init__(self):
        self.seen = []

    def run_block(self, index, img, txt, vec, block):
        self.seen.append((index, tuple(img.shape), tuple(txt.shape), tuple(vec.shape)))
        return block(img, txt, vec)


@torch.no_grad()
def test_guest_stands_around_every_block_and_may_change_nothing():
    model, given, guest = randomized(SMALL), inputs(SMALL, 5, 8), Recorder()
    assert torch.equal(model(*given, guest=guest), model(*given))
    assert guest.seen == [(i, (2, 12, 128), (2, 5, 128), (2, 128)) for i in range(SMALL.depth)]


@torch.no_grad()
def test_text_side_of_the_last_block_passes_unchanged():
    block = randomized(SMALL).joint_blocks[-1]
    img, txt, vec = torch.randn(1, 6, 128), torch.randn(1, 4, 128), torch.randn(1, 128)
    assert torch.equal(block(img, txt, vec)[1], txt)


def test_timestep_embedding_is_cosines_then_sines():
    embedded = timestep_embedding(torch.tensor([0.0, 500.0]), dim=8)
    angles = 500 * 10_000.0 ** -(torch.arange(4) / 4)
    assert embedded[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    torch.testing.assert_close(embedded[1], torch.cat([angles.cos(), angles.sin()]), atol=1e-4, rtol=0)


def test_position_table_encodes_column_then_row():
    table = sincos_position_table(16, 5).unflatten(1, (5, 5))[0]
    assert torch.equal(table[0, :, :8], table[3, :, :8])
    assert torch.equal(table[:, 0, 8:], table[:, 3, 8:])
    torch.testing.assert_close(table[4, 3, 0], torch.tensor(3.0).sin())
    torch.testing.assert_close(table[4, 3, 8], torch.tensor(4.0).sin())


def test_factory_chooses_layers_dtype_and_device():
    class Operations:
        class Linear(nn.Linear):
            pass

        class Conv2d(nn.Conv2d):
            pass

    model = MMDiT(VARIANTS["qk norm"], Factory(operations=Operations, dtype=torch.float16, device="meta"))
    assert {(value.dtype, value.device.type) for value in model.state_dict().values()} == {(torch.float16, "meta")}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert layers
    assert all(type(layer) in (Operations.Linear, Operations.Conv2d) for layer in layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth of at least 1, got 0"),
        ({"hidden_size": 100}, "multiple of 64, got 100"),
        ({"hidden_size": 0}, "multiple of 64, got 0"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
