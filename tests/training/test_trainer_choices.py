"""What may be trained: every family and setting, the image prompt, SD3's own autoencoder, and text."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from trainer_runs import assert_close, log_of, trained

from eam_core.checkpoint import build_control, build_image_prompt
from eam_core.denoiser import Text
from eam_core.errors import EAMError
from eam_core.weight_files import read_weights
from train import train_vision_tower
from train.text_cache import TextCache


@pytest.mark.parametrize("family", ["psi_dit", "controlnet"])
def test_gradient_checkpointing_changes_nothing(parts, tmp_path, family):
    options = ("--family", family, "--steps", "2")
    plain = trained(parts, tmp_path / "plain", *options)
    again = trained(parts, tmp_path / "again", *options, "--gradient-checkpointing", "on")
    assert_close(plain, again, 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        ("--family", "controlnet", "--num-blocks", "1"),
        ("--lr-attention", "cross"),
        ("--lr-init", "text", "--zero-init", "off"),
        ("--loss", "picture", "--times", "uniform"),
        ("--loss", "denoised", "--tala", "u"),
        ("--mask-strategy", "random"),
        ("--local-heads", "1", "--lr-schedule", "constant"),
    ],
    ids=" ".join,
)
def test_every_choice_trains_to_a_file_that_loads(parts, tmp_path, options):
    trained(parts, tmp_path, *options)
    build_control(read_weights(tmp_path / "control.safetensors"), "control")


@pytest.fixture(scope="module")
def tower(parts, tmp_path_factory) -> Path:
    """A tiny random vision tower, tuned by the debug recipe of the first stage."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
    from comfy_launch import define_missing_operators

    define_missing_operators()
    folder = tmp_path_factory.mktemp("tower")
    data = dataclasses.replace(train_vision_tower.debug().data, data=(str(parts.photos),))
    config = dataclasses.replace(train_vision_tower.debug(), data=data, run_dir=str(folder))
    train_vision_tower.train_vision_tower(config)
    return folder / "tower"


@pytest.mark.parametrize("options", [("--tala", "sigma"), ("--tala", "none"), ("--family", "controlnet")], ids=" ".join)
def test_the_image_prompt_trains_with_and_without_tala_and_beside_any_control(parts, tower, tmp_path, options):
    tensors = trained(parts, tmp_path, "--image-encoder", str(tower), *options)
    moved = [
        n
        for n in tensors
        if n.startswith("model.model.image_prompt.") and tensors[n.replace("model", "exp_avg", 1)].any()
    ]
    assert any("to_out_ip" in name for name in moved) and any("projector" in name for name in moved)
    state = read_weights(tmp_path / "control.safetensors")
    prompt = build_image_prompt(state, "control")
    assert prompt is not None and prompt.params.image_size == 64
    again = trained(
        parts, tmp_path / "again", "--image-encoder", str(tower), *options, "--gradient-checkpointing", "on"
    )
    assert_close(tensors, again, 1e-6)


def test_sd3s_own_autoencoder_trains_a_control(parts, tower, tmp_path):
    """The class that holds SD3's autoencoder, small and random, from a diffusers folder."""
    diffusers = pytest.importorskip("diffusers")  # after `tower` has made torchvision importable
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8],
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae.save_pretrained(tmp_path / "vae")
    tensors = trained(parts, tmp_path / "run", "--autoencoder", str(tmp_path / "vae"))
    assert all(".control." in name for name in tensors)
    with pytest.raises(EAMError, match=r"expected an EAM autoencoder .*, got .*; use --loss velocity"):
        trained(parts, tmp_path / "other", "--autoencoder", str(tmp_path / "vae"), "--loss", "picture")


@pytest.fixture(scope="module")
def captioned(parts, tmp_path_factory) -> tuple[list[str], Path]:
    """Options that train with text: pictures with captions, and random embeddings of these and of none."""
    root = tmp_path_factory.mktemp("captioned")
    shutil.copytree(parts.photos, root / "photos")
    cache = TextCache.create(root / "cache", "random")
    generator = torch.Generator().manual_seed(0)
    for name in ["", *(path.stem for path in parts.photos.iterdir())]:
        if name:
            (root / "photos" / f"{name}.sa.txt").write_text(f"picture {name}")
        text = Text(torch.randn(1, 5, 64, generator=generator), torch.randn(1, 64, generator=generator))
        cache.write(f"picture {name}" if name else "", text)
    options = ["--data", str(root / "photos"), "--captions", "sa", "--text-cache", str(cache.folder)]
    return options, root


def test_text_reaches_the_network_and_is_dropped_when_asked(parts, captioned, tmp_path):
    options, _ = captioned
    losses = {}
    for share in ("0", "1"):
        trained(parts, tmp_path / share, *options, "--null-text", share, "--steps", "2", "--lr", "0")
        losses[share] = log_of(tmp_path / share)[0]["loss"]
    trained(parts, tmp_path / "none", "--steps", "2", "--lr", "0")
    assert len({losses["0"], losses["1"], log_of(tmp_path / "none")[0]["loss"]}) == 3


def test_a_caption_without_embedding_is_one_sentence(parts, captioned, tmp_path):
    options, root = captioned
    photos = tmp_path / "photos"
    shutil.copytree(root / "photos", photos)
    for file in photos.glob("*.sa.txt"):
        file.write_text("something else")
    with pytest.raises(EAMError, match=r"expected the embedding of the caption 'something else' in .* found none; run"):
        trained(parts, tmp_path / "run", *options, "--data", str(photos))
