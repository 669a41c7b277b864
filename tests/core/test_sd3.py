"""SD3's own parts from diffusers and transformers: real classes, tiny random weights, real folders."""

import json
import warnings

import pytest
import torch

from eam_core import pretrained, sd3
from eam_core.checkpoint import mmdit_params
from eam_core.diffusers_keys import to_sd3_keys
from eam_core.errors import CheckpointError, EAMError
from eam_core.images import resize
from eam_core.model.control import ControlParams, ControlStream
from eam_core.pipeline import Restorer
from eam_core.presets import SD3
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import save_weights

CONTEXT_SIZE = 32
PROMPTS = ["a small red house", ""]


def make_vae(diffusers, **changes):
    torch.manual_seed(0)
    options = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8,) * 4,
        "layers_per_block": 1,
        "latent_channels": 16,
        "norm_num_groups": 4,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return diffusers.AutoencoderKL(**options | changes).eval()


def save_clip_tokenizer(folder, pad):
    """Write the files of a CLIP tokenizer that knows letters only."""
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz!"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    config |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


def save_t5_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "a", "small", "red", "house"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return len(words)


@pytest.fixture(scope="module")
def folder(diffusers, tmp_path_factory):
    """An SD3 pipeline's folder, as diffusers lays it out."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("sd3")
    torch.manual_seed(0)
    for suffix, size, pad in (("", 8, "<|endoftext|>"), ("_2", 16, "!")):
        vocab_size = save_clip_tokenizer(folder / f"tokenizer{suffix}", pad)
        heads = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
        ends = {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1}
        clip = CLIPTextConfig(vocab_size=vocab_size, hidden_size=size, projection_dim=size, **heads, **ends)
        CLIPTextModelWithProjection(clip).save_pretrained(folder / f"text_encoder{suffix}")
    t5 = T5Config(vocab_size=save_t5_tokenizer(folder / "tokenizer_3"), d_model=CONTEXT_SIZE, d_kv=8, d_ff=16)
    t5.num_layers, t5.num_heads = 2, 2
    T5EncoderModel(t5).save_pretrained(folder / "text_encoder_3")
    make_vae(diffusers).save_pretrained(folder / "vae")
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=CONTEXT_SIZE,
        caption_projection_dim=64,
        pooled_projection_dim=24,
        pos_embed_max_size=64,
    )
    transformer.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def pipeline(diffusers, folder):
    """Diffusers' own pipeline over the same folder."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

    parts = {}
    for suffix, kind in (
        ("", CLIPTextModelWithProjection),
        ("_2", CLIPTextModelWithProjection),
        ("_3", T5EncoderModel),
    ):
        parts[f"text_encoder{suffix}"] = kind.from_pretrained(folder / f"text_encoder{suffix}")
        parts[f"tokenizer{suffix}"] = AutoTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel.from_pretrained(folder / "transformer"),
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **parts,
    )


def theirs(pipeline, prompt):
    context, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
    return context, pooled


def test_text_equals_diffusers(folder, pipeline):
    for ours, prompt in zip(sd3.SD3TextEncoder(folder, context_size=CONTEXT_SIZE).encode(PROMPTS), PROMPTS):
        context, pooled = theirs(pipeline, prompt)
        assert ours.context.shape == (1, 77 + 256, CONTEXT_SIZE)
        torch.testing.assert_close(ours.context, context, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-5)


def test_text_without_t5_equals_diffusers(folder, pipeline, tmp_path, monkeypatch):
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        (tmp_path / part).symlink_to(folder / part)
    monkeypatch.setattr(pipeline, "text_encoder_3", None)
    (ours,) = sd3.SD3TextEncoder(tmp_path, context_size=CONTEXT_SIZE).encode(PROMPTS[:1])
    torch.testing.assert_close(ours.context, theirs(pipeline, PROMPTS[0])[0], rtol=0, atol=1e-5)


def test_autoencoder_equals_diffusers(diffusers, folder):
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval()
    ours = sd3.SD3Autoencoder(folder)
    images = torch.rand(2, 3, 24, 40) * 2 - 1
    with torch.no_grad():
        raw = vae.encode(images).latent_dist.mean
        torch.testing.assert_close(ours.encode(images), raw)
        torch.testing.assert_close(ours.decode(raw), vae.decode(raw).sample)


def test_restores_under_a_prompt_from_one_folder(folder, diffusers, tmp_path):
    state = diffusers.SD3Transformer2DModel.from_pretrained(folder / "transformer").state_dict()
    params = mmdit_params(to_sd3_keys(state, "x"))
    torch.manual_seed(0)
    control = ControlStream(ControlParams(depth=params.depth, hidden_size=params.hidden_size))
    save_weights(tmp_path / "control.safetensors", control.state_dict())
    restorer = Restorer.from_files(
        base=folder, control=tmp_path / "control.safetensors", autoencoder=folder, text_encoders=folder
    )
    assert restorer.spec is SD3
    image = resize(torch.rand(1, 3, 6, 8), (24, 32))
    pictures = [
        restorer.restore(image, RestoreConfig.from_spec(SD3, scale=2, steps=2, prompt=prompt, color_fix="none"))
        for prompt in ("a small red house", "a house")
    ]
    assert pictures[0].shape == (1, 3, 48, 64)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-4


def test_wrong_folders_are_refused(diffusers, folder, tmp_path):
    with pytest.raises(CheckpointError, match="text_encoder in it"):
        sd3.SD3TextEncoder(tmp_path)
    with pytest.raises(CheckpointError, match="4096 channels"):
        sd3.SD3TextEncoder(folder).encode(["a"])
    with pytest.raises(CheckpointError, match="SD3's autoencoder"):
        sd3.SD3Autoencoder(folder / "text_encoder")
    make_vae(diffusers, scaling_factor=0.13025, shift_factor=None).save_pretrained(tmp_path / "sdxl")
    with pytest.raises(CheckpointError, match=r"scaling 0\.13025"):
        sd3.SD3Autoencoder(tmp_path / "sdxl")
    make_vae(diffusers).save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(CheckpointError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sd3.SD3Autoencoder(tmp_path / "pickled")


def test_missing_package_names_what_to_install(folder, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(pretrained, "import_module", missing)
    for make in (sd3.SD3Autoencoder, sd3.SD3TextEncoder):
        with pytest.raises(EAMError, match=r"pip install comfyui-eam\[sd3\]"):
            make(folder)
