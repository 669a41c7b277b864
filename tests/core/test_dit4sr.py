"""DiT4SR's network: the numbers of its authors' code, block by block, and what it can and cannot do."""

import pytest
import torch
from dit4sr_golden import FORWARD, TOLERANCE, Golden, needs_golden

from eam_core.model.image_prompt import ImagePrompt, ImagePromptParams
from eam_core.model.psi_dit import PsiDiT
from eam_core.model.recompute import RecomputedGuest


class Watched:
    """A guest that keeps what every block returns."""

    def __init__(self, guest):
        self.guest, self.seen = guest, []

    def run_block(self, index, img, txt, vec, block):
        img, txt = self.guest.run_block(index, img, txt, vec, block)
        self.seen.append((img, self.guest.guests[0].state[0], txt, vec))
        return img, txt


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
def test_pictures_need_not_be_square(dit4sr):
    """Rows and columns are the true ones: where everything is turned the output turns, also where N is a square."""
    model = dit4sr.model()
    side = model.base.params.pos_embed_max_size
    _, timestep, context, pooled, _ = dit4sr.inputs
    turned = dit4sr.model()
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
def test_blocks_computed_twice_give_the_same_gradients(dit4sr):
    gradients = []
    for wrap in (lambda guest: guest, RecomputedGuest):
        model = dit4sr.model()
        model.wrap_guest = wrap
        loss = model(*dit4sr.inputs).square().mean()
        used = [p for name, p in model.control.named_parameters() if "to_k_control" not in name]
        gradients.append(torch.autograd.grad(loss, used))
    assert all(torch.allclose(*pair) for pair in zip(*gradients))


@needs_golden
@torch.no_grad()
def test_passes_do_not_mix(dit4sr):
    """The LR tokens of a pass live in its run alone: two passes, block by block in turn, equal one after the other."""
    model = dit4sr.model()
    lr, place = dit4sr["inputs.lr_latent"], model.base.host(16, 16)
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
def test_it_cannot_remember_nor_leave_tokens_out(dit4sr):
    model = dit4sr.model()
    assert not model.control.can_remember
    with pytest.raises(ValueError, match="got DiT4SR"):
        model.remember(dit4sr["inputs.lr_latent"])
    with pytest.raises(ValueError, match="needs all LR tokens"):
        model(*dit4sr.inputs, keep=torch.zeros(2, 4, dtype=torch.long))


@needs_golden
@torch.no_grad()
def test_an_image_prompt_stands_around_its_blocks(dit4sr):
    """Its attention comes before the block, whoever computes that block."""
    torch.manual_seed(0)
    model = dit4sr.model()
    prompt = ImagePrompt(ImagePromptParams.for_base(model.base.params, 40))
    for tensor in prompt.state_dict().values():
        tensor.normal_(std=0.1)
    both, tokens = PsiDiT(model.base, model.control, prompt), torch.randn(2, 5, 40)
    prompted = both(*dit4sr.inputs, image_tokens=tokens)
    assert (prompted - dit4sr["output"]).abs().max() > 1e-2
    assert (both(*dit4sr.inputs, image_tokens=tokens, image_scale=0.0) - dit4sr["output"]).abs().max() < TOLERANCE
    image = prompt.embed(tokens)

    class ByHand:
        def __init__(self):
            self.run = model.control.start(dit4sr["inputs.lr_latent"], model.base.host(16, 16))

        def run_block(self, index, img, txt, vec, block):
            return self.run.run_block(index, prompt.blocks[index](img, image, vec, 1.0), txt, vec, block)

    assert torch.allclose(model.base(*dit4sr.inputs[:4], guest=ByHand()), prompted, atol=1e-5)
