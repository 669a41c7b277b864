"""TSD-SR in the library: every stage, from its stored input, equals the authors' own code on small random weights."""

import numpy as np
import pytest
import torch
from torch import Tensor
from tsdsr_golden import close, photo, velocity

from eam_core.color import adain_color_fix, wavelet_color_fix
from eam_core.denoiser import TiledDenoiser
from eam_core.images import resize
from eam_core.lora import encoder_changes, merge, transformer_changes
from eam_core.presets import TSDSR
from eam_core.restore_config import RestoreConfig
from eam_core.start import encode_posterior, first_latents, make_canvas, scale_posterior, upsample
from eam_core.tiling import TileGrid, tiled

pytestmark = pytest.mark.usefixtures("one_thread")


CASES = ("single", "tiled", "resized")


def test_deltas_equal_the_authors(tsdsr):
    merged = {
        "model.diffusion_model.": (tsdsr.base, transformer_changes(tsdsr.group("lora_transformer/"), "x")),
        "first_stage_model.": (tsdsr.autoencoder, encoder_changes(tsdsr.group("lora_vae/"), "x")),
    }
    found = tsdsr.group("delta/")
    assert len(found) == 12
    for prefix, (base, changes) in merged.items():
        patched = merge({key: torch.zeros_like(value) for key, value in base.items()}, changes, "x")
        for key in [key for key in found if key.startswith(prefix)]:
            close(patched[key.removeprefix(prefix)], found[key], 1e-6)
            assert found[key].abs().max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_canvas_equals_the_authors_input(tsdsr, case):
    image, expected = photo(tsdsr, case), tsdsr[f"{case}/encoder_input"]
    close(upsample(image, tuple(expected.shape[-2:])) * 2 - 1, expected, 1e-6)
    if case != "resized":  # where they enlarge a small picture first, and round a side down
        close(make_canvas(image, 4, TSDSR) * 2 - 1, expected, 1e-6)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_posterior_and_start_equal_the_authors(tsdsr, tsdsr_restorer, case):
    posterior = encode_posterior(tsdsr_restorer.autoencoder, tsdsr[f"{case}/encoder_input"])
    mean, std = posterior.chunk(2, dim=1)
    close(mean, tsdsr[f"{case}/posterior_mean"], 1e-4)
    close(std, tsdsr[f"{case}/posterior_std"], 1e-5)
    stored = torch.cat([tsdsr[f"{case}/posterior_mean"], tsdsr[f"{case}/posterior_std"]], dim=1)
    config = RestoreConfig.from_spec(TSDSR)
    start = first_latents(*scale_posterior(stored, TSDSR), tsdsr[f"{case}/noise"], config)
    close(start, tsdsr[f"{case}/lr_latent"], 1e-6)


@pytest.mark.parametrize("case", ["single", "resized"])
def test_velocity_equals_the_authors(tsdsr, tsdsr_restorer, case):
    close(velocity(tsdsr_restorer, tsdsr[f"{case}/lr_latent"]), tsdsr[f"{case}/velocity"], 2e-5)


def test_tile_velocities_equal_the_authors_one_by_one_and_as_a_batch(tsdsr, tsdsr_restorer):
    tiles, expected = tsdsr["tiled/tile_inputs"], tsdsr["tiled/tile_velocities"]
    close(torch.cat([velocity(tsdsr_restorer, tile[None]) for tile in tiles]), expected, 2e-5)
    close(velocity(tsdsr_restorer, tiles), expected, 2e-5)


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Lay tiles as the authors do: even steps, the last one moved back."""
    stride = tile - overlap
    return [min(i * stride, side - tile) for i in range(1 + -(-(side - tile) // stride))]


def test_blended_velocity_equals_the_authors(tsdsr):
    """With the authors' window, half a pixel off in y; ours is wider and centred, see the next test."""
    size, overlap = tsdsr.cases["tiled"]["tile"], tsdsr.cases["tiled"]["overlap"]
    latents, weights = tsdsr["tiled/lr_latent"], tsdsr["tiled/tile_weights_float64"]
    offsets = torch.arange(size, dtype=torch.float64)

    def window(center: float) -> Tensor:
        return torch.exp(-(((offsets - center) / size) ** 2) / 0.02)

    ours = window(size / 2)[:, None] * window((size - 1) / 2)
    torch.testing.assert_close(ours / ours.max(), weights / weights.max(), rtol=1e-12, atol=1e-12)
    total, count = torch.zeros_like(latents), torch.zeros_like(latents)
    places = [
        (x, y) for x in starts(latents.shape[-1], size, overlap) for y in starts(latents.shape[-2], size, overlap)
    ]
    for (x, y), tile, part in zip(places, tsdsr["tiled/tile_inputs"], tsdsr["tiled/tile_velocities"], strict=True):
        here = (..., slice(y, y + size), slice(x, x + size))
        assert torch.equal(latents[here][0], tile)
        total[here] += (weights * part).float()
        count[here] += weights.float()
    close(total / count, tsdsr["tiled/velocity"], 5e-6)
    close(latents - total / count, tsdsr["tiled/output_latent"], 1e-5)


def test_our_tiles_blend_x0_as_they_would_velocities(tsdsr, tsdsr_restorer):
    latents = tsdsr["tiled/lr_latent"]
    config = RestoreConfig.from_spec(TSDSR, tile=64, overlap=16)
    text = tsdsr_restorer.text.encode([""])[0]
    with torch.no_grad():
        denoised = TiledDenoiser(tsdsr_restorer.model, latents, text, None, config)(latents, 1.0)
    grid = TileGrid(height=latents.shape[-2], width=latents.shape[-1], tile=8, overlap=2)
    assert len(grid.boxes) == 6
    blended = tiled(lambda tiles, _: velocity(tsdsr_restorer, tiles), latents, grid)
    close(denoised, latents - blended, 2e-5)
    # Seen from afar the two ways of tiling agree: they differ in where tiles lie and how wide they fade.
    assert (blended - tsdsr["tiled/velocity"]).abs().mean() < 0.2 * tsdsr["tiled/velocity"].abs().mean()


@pytest.mark.parametrize("case", CASES)
def test_output_latent_and_picture_equal_the_authors(tsdsr, tsdsr_restorer, case):
    close(tsdsr[f"{case}/lr_latent"] - tsdsr[f"{case}/velocity"], tsdsr[f"{case}/output_latent"], 1e-6)
    with torch.no_grad():
        close(
            tsdsr_restorer.autoencoder.decode(tsdsr[f"{case}/output_latent"] / 1.5305), tsdsr[f"{case}/decoded"], 1e-4
        )
    decoded = tsdsr_restorer.decode(tsdsr[f"{case}/output_latent"])
    close(decoded, (tsdsr[f"{case}/decoded"] / 2 + 0.5).clamp(0, 1), 1e-4)


@torch.no_grad()
def test_end_to_end_from_picture_and_noise(tsdsr, tsdsr_restorer):
    """All of ours but the seed: what the authors' script makes of the same picture and the same noise."""
    canvas = make_canvas(photo(tsdsr, "single"), 4, TSDSR)
    mean, spread = tsdsr_restorer.encode_start(canvas)
    start = first_latents(mean, spread, tsdsr["single/noise"], RestoreConfig.from_spec(TSDSR))
    text = tsdsr_restorer.text.encode([""])[0]
    denoised = TiledDenoiser(tsdsr_restorer.model, mean, text, None, RestoreConfig.from_spec(TSDSR))(start, 1.0)
    close(tsdsr_restorer.autoencoder.decode(denoised / 1.5305), tsdsr["single/decoded"], 2e-4)
    without = denoised - (velocity(tsdsr_restorer, start) - tsdsr["single/velocity_without_lora"])
    assert (without - tsdsr["single/output_latent"]).abs().max() > 0.1, "the LoRA makes no difference"


def test_without_its_lora_the_encoder_is_the_users(tsdsr, tsdsr_paths, diffusers):
    from eam_core.sd3 import SD3Autoencoder

    plain = SD3Autoencoder(tsdsr_paths["autoencoder"])
    with torch.no_grad():
        mean = plain.encode(tsdsr["single/encoder_input"])
    close(mean, tsdsr["single/posterior_mean_without_lora"], 1e-4)
    assert (mean - tsdsr["single/posterior_mean"]).abs().max() > 0.5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fix", ["nofix", "wavelet", "adain"])
def test_pngs_equal_the_authors_within_one_level(tsdsr, case, fix):
    """They truncate to 8 bits where we round, and take adain's colours from the picture that was not enlarged."""
    from PIL import Image

    decoded = (tsdsr[f"{case}/decoded"].clamp(-1, 1) / 2 + 0.5) * 255
    expected = tsdsr[f"{case}/png_{fix}"]
    height, width = expected.shape[:2]
    pixels = decoded[0].permute(1, 2, 0).numpy().astype(np.uint8)
    small = tsdsr[f"{case}/lr_image_uint8"]
    if pixels.shape[:2] != (height, width):
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    lr = small.permute(2, 0, 1)[None].float() / 255
    if fix == "wavelet":
        image = wavelet_color_fix(image, resize(lr, (height, width)))
    elif fix == "adain":
        image = adain_color_fix(image, lr.repeat_interleave(4, -1).repeat_interleave(4, -2))
    got = (image.clamp(0, 1) * 255 + 1e-3).to(torch.uint8)[0].permute(1, 2, 0)
    assert (got.int() - expected.int()).abs().max() <= 1
