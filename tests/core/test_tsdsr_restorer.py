"""TSD-SR in whole restorations: sizes, seeds, tiles, and settings that it does not have."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor
from tsdsr_golden import close, photo, velocity

from eam_core.checkpoint import mmdit_params
from eam_core.cli import main
from eam_core.companions import read_companions
from eam_core.denoiser import Text
from eam_core.errors import CheckpointError
from eam_core.images import resize
from eam_core.model.tsdsr import TSDSRParams
from eam_core.pipeline import Restorer
from eam_core.presets import TSDSR
from eam_core.restore_config import RestoreConfig
from eam_core.start import make_canvas
from eam_core.weight_files import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def restored(restorer: Restorer, image: Tensor, **changes) -> Tensor:
    return restorer.restore(image, RestoreConfig.from_spec(TSDSR, **changes))


def test_restores_any_size_to_exactly_scale_times_it(tsdsr, tsdsr_restorer):
    image = resize(photo(tsdsr, "tiled"), (21, 17))
    result = restored(tsdsr_restorer, image, scale=3, seed=1)
    assert result.shape == (1, 3, 63, 51)
    assert result.isfinite().all() and result.std() > 0.01
    # Padding does not shift the picture: a canvas that needs none gives the same middle, away from the padded sides.
    assert restored(tsdsr_restorer, photo(tsdsr, "tiled")).shape == (1, 3, 96, 160)


def test_seed_and_encoder_noise(tsdsr, tsdsr_restorer):
    image = photo(tsdsr, "single")
    one, again, other = (restored(tsdsr_restorer, image, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=1e-2)
    mean, same_mean = (restored(tsdsr_restorer, image, seed=seed, encoder_noise=0.0) for seed in (1, 2))
    assert torch.equal(mean, same_mean) and not torch.allclose(mean, one, atol=1e-2)


def test_seed_is_the_one_of_the_noise(tsdsr, tsdsr_restorer):
    """A seed draws the noise that ComfyUI draws; the rest is what the stages above have shown."""
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(7))
    config = RestoreConfig.from_spec(TSDSR, seed=7, color_fix="none")
    mean, spread = tsdsr_restorer.encode_start(make_canvas(photo(tsdsr, "single"), 4, TSDSR))
    start = mean + spread * noise
    expected = tsdsr_restorer.decode(start - velocity(tsdsr_restorer, start))
    close(tsdsr_restorer.restore(photo(tsdsr, "single"), config), expected, 1e-5)


def test_tile_batch_changes_nothing(tsdsr, tsdsr_restorer):
    image, tiling = photo(tsdsr, "tiled"), {"tile": 64, "overlap": 16}
    one, four = (restored(tsdsr_restorer, image, tile_batch=batch, **tiling) for batch in (1, 4))
    torch.testing.assert_close(one, four, rtol=0, atol=1e-4)
    assert not torch.allclose(one, restored(tsdsr_restorer, image), atol=1e-2)


def test_prompts_and_steps_are_the_models_own(tsdsr, tsdsr_restorer):
    image = photo(tsdsr, "single")
    with pytest.warns(UserWarning, match="prompt has no effect: TSD-SR"):
        prompted = restored(tsdsr_restorer, image, prompt="a house")
    assert torch.equal(prompted, restored(tsdsr_restorer, image))
    for change in ({"steps": 4}, {"sigma_start": 0.5}):
        with pytest.raises(ValueError, match="expected steps 1 and sigma_start 1 for TSD-SR"):
            restored(tsdsr_restorer, image, **change)
    with pytest.raises(ValueError, match="expected control_scale 1 for TSD-SR"):
        restored(tsdsr_restorer, image, control_scale=0.0)


def test_command_line_restores_and_shows_the_licence(tsdsr, tsdsr_paths, tsdsr_restorer, tmp_path, capsys, caplog):
    from PIL import Image

    Image.fromarray(tsdsr["tiled/lr_image_uint8"].numpy()).save(tmp_path / "in.png")
    options = [
        "--base",
        tsdsr_paths["base"],
        "--control",
        tsdsr_paths["control"].parent,
        "--autoencoder",
        tsdsr_paths["autoencoder"],
    ]
    with caplog.at_level(logging.INFO, logger="eam_core"):
        assert main(["upscale", str(tmp_path / "in.png"), str(tmp_path / "out.png"), *map(str, options)]) == 0
    assert "Apache" in capsys.readouterr().err and "Apache" in caplog.text
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "out.png"))).permute(2, 0, 1)[None].float() / 255
    close(pixels, restored(tsdsr_restorer, photo(tsdsr, "tiled")), 1 / 255)


def test_own_text_encoders_embed_the_fixed_prompt(tsdsr, tsdsr_paths, monkeypatch):
    from eam_core import loading

    asked = []

    class Encoders:
        def encode(self, prompts: list[str]) -> list[Text]:
            asked.extend(prompts)
            return [tsdsr.text] * len(prompts)

    beside = read_companions(
        tsdsr_paths["control"], read_weights(tsdsr_paths["control"]), TSDSRParams(depth=2, hidden_size=128)
    )
    params = mmdit_params(tsdsr.base)
    without = type(beside)(transformer=beside.transformer, encoder=beside.encoder, missing_text="nothing there")
    text = loading._fixed_text(Encoders(), without, TSDSR, params)
    assert torch.equal(text.encode(["", ""])[1].context, tsdsr.text.context)
    assert asked == [TSDSR.fixed_prompt] and "extrememeticulous" in TSDSR.fixed_prompt
    with pytest.raises(CheckpointError, match="nothing there, or name text encoders"):
        loading._fixed_text(None, without, TSDSR, params)
