"""The vision tower from real transformers folders with tiny random weights, and what the library does with it."""

import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from eam_core import pretrained
from eam_core.checkpoint import IMAGE_PROMPT_PREFIX
from eam_core.cli import main
from eam_core.errors import CheckpointError, EAMError
from eam_core.model.image_prompt import ImagePrompt, ImagePromptParams
from eam_core.pipeline import Restorer
from eam_core.presets import EMBEDDED
from eam_core.restore_config import RestoreConfig
from eam_core.vision import VisionTower, to_pixels
from eam_core.weight_files import save_weights

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
CONFIG = RestoreConfig.from_spec(EMBEDDED, scale=4, steps=1, tile=64, overlap=32)


@pytest.fixture(scope="module")
def transformers(diffusers):
    import transformers

    return transformers


@pytest.fixture(scope="module")
def tower(transformers):
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**SIZES, image_size=28, patch_size=7, projection_dim=16)
    return transformers.CLIPVisionModelWithProjection(config).half().float().eval()


@pytest.fixture(scope="module")
def folder(tower, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    tower.save_pretrained(folder)
    return folder


@pytest.fixture
def paths(tiny, tmp_path):
    """Files of a small random model whose control holds an image prompt."""
    paths = tiny.save(tmp_path)
    torch.manual_seed(2)
    prompt = ImagePrompt(ImagePromptParams(depth=2, hidden_size=64, image_size=32))
    for parameter in prompt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {IMAGE_PROMPT_PREFIX + key: value for key, value in prompt.state_dict().items()}
    save_weights(paths.control, tiny.model().control.state_dict() | state)
    return paths


def picture(seed: int = 0, height: int = 24, width: int = 40) -> torch.Tensor:
    small = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (height, width), mode="bilinear")


@torch.no_grad()
def test_tokens_are_the_last_hidden_state_of_the_whole_picture(tower, folder):
    images = torch.cat([picture(0), picture(1)])
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
    resized = torch.nn.functional.interpolate(images, (28, 28), mode="bicubic", antialias=True)
    pixels = ((resized * 255).clamp(0, 255).round() / 255).sub(mean[:, None, None]).div(std[:, None, None])
    loaded = VisionTower(folder)
    found = loaded.encode(images)
    assert found.shape == (2, 17, 32) and loaded.hidden_size == 32
    assert torch.allclose(found, tower.vision_model(pixels).last_hidden_state, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-2
    edge = images.clone()
    edge[..., :2] = 0
    assert not torch.allclose(loaded.encode(edge), found, atol=1e-3), "the picture's edges were cropped"


def test_pixels_that_need_no_resizing_are_only_normalised():
    levels = torch.arange(256).repeat(3).float().reshape(1, 3, 16, 16) / 255
    assert torch.allclose(to_pixels(levels, 16)[0, 0] * 0.26862954 + 0.48145466, levels[0, 0], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPModel"])
def test_other_folders_that_hold_the_same_tower(kind, transformers, tower, folder, tmp_path):
    torch.manual_seed(1)
    if kind == "CLIPVisionModel":
        model = transformers.CLIPVisionModel(tower.config)
        getattr(model, "vision_model", model).load_state_dict(tower.vision_model.state_dict())
    else:
        text = {"vocab_size": 64, "bos_token_id": 62, "eos_token_id": 63, **SIZES}
        both = transformers.CLIPConfig(vision_config=tower.config.to_dict(), text_config=text, projection_dim=16)
        model = transformers.CLIPModel(both)
        model.vision_model.load_state_dict(tower.vision_model.state_dict())
    model.save_pretrained(tmp_path / "other")
    assert torch.equal(VisionTower(tmp_path / "other").encode(picture()), VisionTower(folder).encode(picture()))


def test_folders_that_hold_no_tower(transformers, folder, tmp_path):
    text = transformers.CLIPTextConfig(vocab_size=64, bos_token_id=62, eos_token_id=63, **SIZES)
    transformers.CLIPTextModel(text).save_pretrained(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    for name in ("text", "empty", "missing"):
        with pytest.raises(CheckpointError, match=f"expected a CLIP vision tower in .*{name}"):
            VisionTower(tmp_path / name)
    shutil.copytree(folder, tmp_path / "partly")
    # Older transformers want to be told whose tensors they are.
    only = {"vision_model.pre_layrnorm.weight": torch.ones(32)}
    safetensors.torch.save_file(only, tmp_path / "partly" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"but it lacks .* more; choose the image encoder's folder"):
        VisionTower(tmp_path / "partly")
    shutil.copytree(folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="expected a CLIP vision tower in"):
        VisionTower(tmp_path / "pickled")


def test_transformers_missing(monkeypatch, folder):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(pretrained, "import_module", missing)
    with pytest.raises(EAMError, match="expected the package transformers"):
        VisionTower(folder)


def test_transformers_that_trips_over_another_package(monkeypatch, folder):
    class Broken:
        def __getattr__(self, name):
            raise ModuleNotFoundError(f"Could not import module {name!r}")

    monkeypatch.setattr(pretrained, "import_module", lambda name: Broken())
    with pytest.raises(EAMError, match="expected a transformers with CLIPVisionModel, but it cannot be imported"):
        VisionTower(folder)


def test_restored_picture_follows_the_image_prompt_in_every_tile(paths, folder, recwarn):
    with_prompt = Restorer.from_files(**vars(paths), image_encoder=folder)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="the control's image prompt has no effect: no image encoder is given"):
        without = Restorer.from_files(**vars(paths))
    image = picture()
    prompted, plain = with_prompt.restore(image, CONFIG), without.restore(image, CONFIG)
    changed = (prompted - plain).abs().amax(dim=(0, 1))
    for corner in (changed[:8, :8], changed[-8:, -8:], changed[:8, -8:], changed[-8:, :8]):
        assert corner.max() > 1e-3


def test_every_picture_of_a_batch_keeps_its_own_tokens(paths, folder):
    restorer = Restorer.from_files(**vars(paths), image_encoder=folder)
    image = picture()
    pictures = torch.cat([image, picture(5)])
    one, three = (restorer.restore(pictures, replace(CONFIG, tile_batch=num)) for num in (1, 3))
    assert torch.allclose(one, three, atol=1e-4)
    same = restorer.restore(image.repeat(2, 1, 1, 1), replace(CONFIG, tile_batch=3))
    assert torch.allclose(one[0], same[0], atol=1e-4)


def test_image_prompt_works_while_the_control_is_off(paths, folder):
    off = replace(CONFIG, control_scale=0.0)
    image = picture()
    with_prompt = Restorer.from_files(**vars(paths), image_encoder=folder)
    with pytest.warns(UserWarning):
        without = Restorer.from_files(**vars(paths))
    assert (with_prompt.restore(image, off) - without.restore(image, off)).abs().max() > 1e-3


def test_encoder_and_weights_that_do_not_go_together(tiny, paths, folder, transformers, tmp_path):
    wide = transformers.CLIPVisionConfig(**SIZES | {"hidden_size": 64}, image_size=28, patch_size=7)
    transformers.CLIPVisionModel(wide).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match="with tokens of 32 channels like the image prompt, got 64; choose the"):
        Restorer.from_files(**vars(paths), image_encoder=tmp_path / "wide")
    paths = tiny.save(tmp_path)
    with pytest.warns(UserWarning, match="the image encoder has no effect: the control has no image prompt"):
        Restorer.from_files(**vars(paths), image_encoder=folder)
    prompt = ImagePrompt(ImagePromptParams(depth=3, hidden_size=64, image_size=32)).state_dict()
    state = {IMAGE_PROMPT_PREFIX + key: value for key, value in prompt.items()}
    save_weights(paths.control, tiny.model().control.state_dict() | state)
    with pytest.raises(CheckpointError, match=r"control.safetensors was trained for another: depth 3 instead of 2"):
        Restorer.from_files(**vars(paths))


def test_command_line(paths, folder, tmp_path, capsys):
    from PIL import Image

    pixels = (picture()[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "in.png")
    files = [f"--{name}={path}" for name, path in vars(paths).items()]
    command = ["upscale", str(tmp_path / "in.png"), str(tmp_path / "out.png"), *files, "--steps=1", "--tile=64"]
    assert main([*command, f"--image-encoder={folder}"]) == 0
    prompted = (tmp_path / "out.png").read_bytes()
    assert main([*command]) == 0
    assert "warning: the control's image prompt has no effect" in capsys.readouterr().err
    assert (tmp_path / "out.png").read_bytes() != prompted
    assert main([*command, f"--image-encoder={tmp_path / 'none'}"]) == 2
    assert "error: expected a CLIP vision tower in" in capsys.readouterr().err
