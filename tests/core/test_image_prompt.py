"""The image prompt's promises: nothing at first, everything learns, the base is untouched, files hold it."""

import dataclasses

import pytest
import torch

from eam_core.checkpoint import IMAGE_PROMPT_PREFIX, build_control, build_image_prompt, check_pair, describe
from eam_core.errors import CheckpointError
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.control_init import init_control
from eam_core.model.image_prompt import ImagePrompt, ImagePromptParams, init_image_prompt
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.psi_dit import PsiDiT
from eam_core.weight_files import read_weights, save_weights

PLAIN = MMDiTParams(depth=3, hidden_size=128, context_size=32, pooled_size=16, pos_embed_max_size=16)
BASES = {"plain": PLAIN, "sd3.5": dataclasses.replace(PLAIN, qk_norm=True, dual_attention_blocks=(0, 1))}
IMAGE_SIZE = 40


def make_base(kind: str = "plain") -> MMDiT:
    torch.manual_seed(0)
    base = MMDiT(BASES[kind])
    for tensor in base.state_dict().values():
        tensor.normal_(std=tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.5)
    return base


def make_model(kind: str = "plain", *, trained: bool = False, lr_attention: str = "joint") -> PsiDiT:
    """A base with a control that adds something, and a new or random image prompt."""
    base = make_base(kind)
    shared = {"depth": 3, "hidden_size": 128, "qk_norm": base.params.qk_norm}
    control = ControlStream(ControlParams(**shared, lr_attention=lr_attention))
    init_control(control, base.state_dict(), zero_init=False)
    torch.manual_seed(1)
    prompt = ImagePrompt(ImagePromptParams.for_base(base.params, IMAGE_SIZE))
    init_image_prompt(prompt, base.state_dict())
    for block in prompt.blocks if trained else ():
        torch.nn.init.normal_(block.to_out_ip.weight, std=0.1)
    return PsiDiT(base, control, prompt)


def inputs(height: int = 6, width: int = 8, num_tokens: int = 5) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return noisy latents, timestep, context, pooled, LR latents; and image tokens."""
    generator = torch.Generator().manual_seed(1)
    latents, lr = torch.randn(2, 2, 16, height, width, generator=generator)
    context, pooled = torch.randn(2, 7, 32, generator=generator), torch.randn(2, 16, generator=generator)
    tokens = torch.randn(2, num_tokens, IMAGE_SIZE, generator=generator)
    return (latents, torch.tensor([700.0, 200.0]), context, pooled, lr), tokens


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
def test_new_image_prompt_changes_nothing_exactly(kind):
    given, tokens = inputs()
    model = make_model(kind)
    assert torch.equal(model(*given, image_tokens=tokens), model(*given))
    alone = model(*given[:4], None, image_tokens=tokens)
    assert torch.equal(alone, make_base(kind)(*given[:4]))


def test_queries_are_the_noisy_sides_and_keys_the_text_sides():
    model = make_model("sd3.5")
    block, base = model.image_prompt.blocks[2], model.base.joint_blocks[2]
    assert torch.equal(block.img_attn.q.weight, base.x_block.attn.qkv.weight[:128])
    assert torch.equal(block.ip_attn.kv.weight, base.context_block.attn.qkv.weight[128:])
    assert torch.equal(block.img_attn.ln_q.weight, base.x_block.attn.ln_q.weight)
    assert torch.equal(block.ip_attn.ln_k.weight, base.context_block.attn.ln_k.weight)
    silence = model.base.t_embedder(torch.cat([torch.ones(1, 128), torch.zeros(1, 128)], dim=1))
    vec = silence + model.base.y_embedder(torch.zeros(1, 16))
    text_side = torch.stack([chunk[0] for chunk in base.context_block.modulation_chunks(vec)[:2]])
    assert torch.allclose(block.ip_mod_table, text_side, atol=1e-5)


@pytest.mark.parametrize("kind", BASES)
def test_zero_layer_learns_first_then_everything_and_the_base_never(kind):
    given, tokens = inputs()
    model = make_model(kind)
    target = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.image_prompt.parameters(), lr=0.5)
    frozen = {name: value.clone() for name, value in model.base.state_dict().items()}
    moved = []
    for _ in range(2):
        before = {name: value.clone() for name, value in model.image_prompt.state_dict().items()}
        optimizer.zero_grad()
        (model(*given, image_tokens=tokens) * target).mean().backward()
        optimizer.step()
        after = model.image_prompt.state_dict()
        moved.append({name for name in after if not torch.equal(after[name], before[name])})
    zero_layers = {f"prompt_blocks.{i}.to_out_ip.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert moved[0] == zero_layers
    assert moved[1] == before.keys()
    assert all(torch.equal(value, frozen[name]) for name, value in model.base.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("lr_attention", ["joint", "self", "cross"])
def test_trained_prompt_adds_to_any_control_and_stands_nearest_to_the_block(lr_attention, kind):
    given, tokens = inputs()
    model = make_model(kind, trained=True, lr_attention=lr_attention)
    plain, prompted = model(*given), model(*given, image_tokens=tokens)
    assert (prompted - plain).abs().max() > 1e-2
    assert torch.equal(model(*given, image_tokens=tokens, image_scale=0.0), plain)
    assert not torch.equal(model(*given, image_tokens=tokens.flip(0)), prompted)
    assert torch.allclose(model(*given, image_tokens=tokens.flip(1)), prompted, atol=1e-5), "tokens are a set"
    image = model.image_prompt.embed(tokens)

    def by_hand(index, img, txt, vec, block):
        img, control.lr = model.control.blocks[index](img, control.lr, vec)
        return block(model.image_prompt.blocks[index](img, image, vec, 1.0), txt, vec)

    control = type("Guest", (), {"run_block": staticmethod(by_hand)})()
    control.lr = model.control.embed(given[4], model.base.positions(6, 8))
    assert torch.allclose(model.base(*given[:4], guest=control), prompted, atol=1e-5)


@torch.no_grad()
def test_noisy_tokens_read_different_things_from_several_tokens():
    """With one key the softmax is 1 wherever one stands; that is why a single token is refused."""
    prompt = make_model(trained=True).image_prompt
    img, vec = torch.randn(1, 9, 128), torch.randn(1, 128)
    for num_tokens, spread in ((1, 0.0), (2, 1e-3)):
        read = prompt.blocks[0](img, torch.randn(1, num_tokens, 128), vec, 1.0) - img
        found = (read - read[:, :1]).abs().max()
        assert found < 1e-5 if spread == 0 else found > spread


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (2, 1, IMAGE_SIZE),
            "at least 2 image tokens per picture, got 1; pass the vision tower's patch tokens",
        ),
        ((2, IMAGE_SIZE), r"expected image tokens \[B, T, 40\], got \[2, 40\]"),
        ((2, 5, 8), r"expected image tokens \[B, T, 40\], got \[2, 5, 8\]; use the vision tower"),
    ],
)
def test_wrong_tokens_are_refused(shape, message):
    given, _ = inputs()
    with pytest.raises(ValueError, match=message):
        make_model()(*given, image_tokens=torch.zeros(shape))


def test_tokens_without_a_prompt_and_a_prompt_of_another_size_are_refused():
    given, tokens = inputs()
    model = make_model()
    with pytest.raises(ValueError, match="expected no image_tokens, got some; build the model with an image prompt"):
        PsiDiT(model.base, model.control)(*given, image_tokens=tokens)
    small = ImagePrompt(ImagePromptParams(depth=2, hidden_size=128, image_size=8))
    with pytest.raises(ValueError, match="expected an image prompt with depth 3 like its base, got 2"):
        PsiDiT(model.base, model.control, small)
    with pytest.raises(ValueError, match="expected a base of 2 blocks and width 128 like the image prompt, got 3"):
        init_image_prompt(small, model.base.state_dict())
    with pytest.raises(ValueError, match="multiple of 64, got 100"):
        ImagePromptParams(depth=2, hidden_size=100, image_size=8)


@torch.no_grad()
@pytest.mark.parametrize("kind", BASES)
def test_saved_beside_the_control_and_found_again(tmp_path, kind):
    given, tokens = inputs()
    model = make_model(kind, trained=True)
    prompt = {IMAGE_PROMPT_PREFIX + key: value for key, value in model.image_prompt.state_dict().items()}
    save_weights(tmp_path / "both.safetensors", model.control.state_dict() | prompt)
    state = read_weights(tmp_path / "both.safetensors")
    factory = Factory(dtype=torch.float32)
    control, found = build_control(state, "both", factory), build_image_prompt(state, "both", factory)
    assert found.params == model.image_prompt.params
    check_pair(model.base.params, found.params, "both")
    again = PsiDiT(model.base, control, found)
    assert torch.equal(again(*given, image_tokens=tokens), model(*given, image_tokens=tokens))
    assert describe(state) == "EAM control weights"


def test_files_without_damaged_or_with_nothing_but_an_image_prompt(tmp_path):
    model = make_model()
    control = model.control.state_dict()
    prompt = {IMAGE_PROMPT_PREFIX + key: value for key, value in model.image_prompt.state_dict().items()}
    assert build_image_prompt(control, "x") is None
    with pytest.raises(CheckpointError, match="x holds the weights of an EAM image prompt without its control"):
        build_control(prompt, "x")
    del prompt["image_prompt.prompt_blocks.1.to_out_ip.bias"]
    with pytest.raises(CheckpointError, match=r"x lacks \['prompt_blocks.1.to_out_ip.bias'\]"):
        build_image_prompt(control | prompt, "x")
    with pytest.raises(CheckpointError, match=r"incomplete or damaged"):
        build_image_prompt({"image_prompt.prompt_blocks.0.to_out_ip.bias": torch.zeros(1)}, "x")
    other = dataclasses.replace(model.base.params, depth=4)
    with pytest.raises(CheckpointError, match="x was trained for another: depth 3 instead of 4"):
        check_pair(other, model.image_prompt.params, "x")
