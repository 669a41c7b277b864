"""TSD-SR in the library: every stage equals the authors' own code on small random weights; sizes; refusals."""

import importlib.util
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eam_core.checkpoint import mmdit_params
from eam_core.cli import main
from eam_core.color import adain_color_fix, wavelet_color_fix
from eam_core.companions import read_companions, read_embeddings, save_embeddings
from eam_core.denoiser import Text, TiledDenoiser
from eam_core.errors import CheckpointError
from eam_core.images import resize
from eam_core.loading import spec_of_files
from eam_core.lora import encoder_changes, merge, transformer_changes
from eam_core.model.mmdit import MMDiTParams
from eam_core.model.tsdsr import TSDSRParams
from eam_core.pipeline import Restorer
from eam_core.presets import TSDSR
from eam_core.restore_config import RestoreConfig
from eam_core.start import encode_posterior, first_latents, make_canvas, scale_posterior, upsample
from eam_core.tiling import TileGrid, tiled
from eam_core.weight_files import read_weights


def _neighbour(name: str):
    """Import a file beside this one; test files cannot import their neighbours by name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


golden_files = _neighbour("tsdsr_golden")
CASES = ("single", "tiled", "resized")
REAL = MMDiTParams(depth=24, hidden_size=1536)
RANK = 64


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=golden_files.FILES or [None])
def golden(request):
    if request.param is None:
        pytest.skip(f"no golden files tsdsr_*.safetensors in {golden_files.FOLDER}; set EAM_GOLDEN")
    return golden_files.Golden.load(request.param)


@pytest.fixture(scope="module")
def paths(golden, diffusers, tmp_path_factory):
    """Base, control and autoencoder of the golden file as the files a user has."""
    folder = tmp_path_factory.mktemp("tsdsr")
    return {
        "base": golden.save_base(folder / "base.safetensors", "model.diffusion_model."),
        "control": golden.save_control(folder / "tsdsr"),
        "autoencoder": golden.save_autoencoder(diffusers, folder / "vae"),
    }


@pytest.fixture(scope="module")
def restorer(paths):
    return Restorer.from_files(**paths)


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance


def photo(golden, case: str) -> Tensor:
    return golden[f"{case}/lr_image_uint8"].permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def velocity(restorer: Restorer, latents: Tensor) -> Tensor:
    text = restorer.text.encode([""])[0]
    num = len(latents)
    args = (text.context.expand(num, -1, -1), text.pooled.expand(num, -1))
    return restorer.model(latents, torch.full((num,), 1000.0), *args, latents)


# Parity, stage by stage, from the stored input of each


def test_deltas_equal_the_authors(golden):
    merged = {
        "model.diffusion_model.": (golden.base, transformer_changes(golden.group("lora_transformer/"), "x")),
        "first_stage_model.": (golden.autoencoder, encoder_changes(golden.group("lora_vae/"), "x")),
    }
    found = golden.group("delta/")
    assert len(found) == 12
    for prefix, (base, changes) in merged.items():
        patched = merge({key: torch.zeros_like(value) for key, value in base.items()}, changes, "x")
        for key in [key for key in found if key.startswith(prefix)]:
            close(patched[key.removeprefix(prefix)], found[key], 1e-6)
            assert found[key].abs().max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_canvas_equals_the_authors_input(golden, case):
    image, expected = photo(golden, case), golden[f"{case}/encoder_input"]
    close(upsample(image, tuple(expected.shape[-2:])) * 2 - 1, expected, 1e-6)
    if case != "resized":  # where they enlarge a small picture first, and round a side down
        close(make_canvas(image, 4, TSDSR) * 2 - 1, expected, 1e-6)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_posterior_and_start_equal_the_authors(golden, restorer, case):
    posterior = encode_posterior(restorer.autoencoder, golden[f"{case}/encoder_input"])
    mean, std = posterior.chunk(2, dim=1)
    close(mean, golden[f"{case}/posterior_mean"], 1e-4)
    close(std, golden[f"{case}/posterior_std"], 1e-5)
    stored = torch.cat([golden[f"{case}/posterior_mean"], golden[f"{case}/posterior_std"]], dim=1)
    config = RestoreConfig.from_spec(TSDSR)
    start = first_latents(*scale_posterior(stored, TSDSR), golden[f"{case}/noise"], config)
    close(start, golden[f"{case}/lr_latent"], 1e-6)


@pytest.mark.parametrize("case", ["single", "resized"])
def test_velocity_equals_the_authors(golden, restorer, case):
    close(velocity(restorer, golden[f"{case}/lr_latent"]), golden[f"{case}/velocity"], 2e-5)


def test_tile_velocities_equal_the_authors_one_by_one_and_as_a_batch(golden, restorer):
    tiles, expected = golden["tiled/tile_inputs"], golden["tiled/tile_velocities"]
    close(torch.cat([velocity(restorer, tile[None]) for tile in tiles]), expected, 2e-5)
    close(velocity(restorer, tiles), expected, 2e-5)


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Lay tiles as the authors do: even steps, the last one moved back."""
    stride = tile - overlap
    return [min(i * stride, side - tile) for i in range(1 + -(-(side - tile) // stride))]


def test_blended_velocity_equals_the_authors(golden):
    """With the authors' window, half a pixel off in y; ours is wider and centred, see the next test."""
    size, overlap = golden.cases["tiled"]["tile"], golden.cases["tiled"]["overlap"]
    latents, weights = golden["tiled/lr_latent"], golden["tiled/tile_weights_float64"]
    offsets = torch.arange(size, dtype=torch.float64)

    def window(center: float) -> Tensor:
        return torch.exp(-(((offsets - center) / size) ** 2) / 0.02)

    ours = window(size / 2)[:, None] * window((size - 1) / 2)
    torch.testing.assert_close(ours / ours.max(), weights / weights.max(), rtol=1e-12, atol=1e-12)
    total, count = torch.zeros_like(latents), torch.zeros_like(latents)
    places = [
        (x, y) for x in starts(latents.shape[-1], size, overlap) for y in starts(latents.shape[-2], size, overlap)
    ]
    for (x, y), tile, part in zip(places, golden["tiled/tile_inputs"], golden["tiled/tile_velocities"], strict=True):
        here = (..., slice(y, y + size), slice(x, x + size))
        assert torch.equal(latents[here][0], tile)
        total[here] += (weights * part).float()
        count[here] += weights.float()
    close(total / count, golden["tiled/velocity"], 5e-6)
    close(latents - total / count, golden["tiled/output_latent"], 1e-5)


def test_our_tiles_blend_x0_as_they_would_velocities(golden, restorer):
    latents = golden["tiled/lr_latent"]
    config = RestoreConfig.from_spec(TSDSR, tile=64, overlap=16)
    text = restorer.text.encode([""])[0]
    with torch.no_grad():
        denoised = TiledDenoiser(restorer.model, latents, text, None, config)(latents, 1.0)
    grid = TileGrid(height=latents.shape[-2], width=latents.shape[-1], tile=8, overlap=2)
    assert len(grid.boxes) == 6
    blended = tiled(lambda tiles, _: velocity(restorer, tiles), latents, grid)
    close(denoised, latents - blended, 2e-5)
    # Seen from afar the two ways of tiling agree: they differ in where tiles lie and how wide they fade.
    assert (blended - golden["tiled/velocity"]).abs().mean() < 0.2 * golden["tiled/velocity"].abs().mean()


@pytest.mark.parametrize("case", CASES)
def test_output_latent_and_picture_equal_the_authors(golden, restorer, case):
    close(golden[f"{case}/lr_latent"] - golden[f"{case}/velocity"], golden[f"{case}/output_latent"], 1e-6)
    with torch.no_grad():
        close(restorer.autoencoder.decode(golden[f"{case}/output_latent"] / 1.5305), golden[f"{case}/decoded"], 1e-4)
    decoded = restorer.decode(golden[f"{case}/output_latent"])
    close(decoded, (golden[f"{case}/decoded"] / 2 + 0.5).clamp(0, 1), 1e-4)


@torch.no_grad()
def test_end_to_end_from_picture_and_noise(golden, restorer):
    """All of ours but the seed: what the authors' script makes of the same picture and the same noise."""
    canvas = make_canvas(photo(golden, "single"), 4, TSDSR)
    mean, spread = restorer.encode_start(canvas)
    start = first_latents(mean, spread, golden["single/noise"], RestoreConfig.from_spec(TSDSR))
    text = restorer.text.encode([""])[0]
    denoised = TiledDenoiser(restorer.model, mean, text, None, RestoreConfig.from_spec(TSDSR))(start, 1.0)
    close(restorer.autoencoder.decode(denoised / 1.5305), golden["single/decoded"], 2e-4)
    without = denoised - (velocity(restorer, start) - golden["single/velocity_without_lora"])
    assert (without - golden["single/output_latent"]).abs().max() > 0.1, "the LoRA makes no difference"


def test_without_its_lora_the_encoder_is_the_users(golden, paths, diffusers):
    from eam_core.sd3 import SD3Autoencoder

    plain = SD3Autoencoder(paths["autoencoder"])
    with torch.no_grad():
        mean = plain.encode(golden["single/encoder_input"])
    close(mean, golden["single/posterior_mean_without_lora"], 1e-4)
    assert (mean - golden["single/posterior_mean"]).abs().max() > 0.5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fix", ["nofix", "wavelet", "adain"])
def test_pngs_equal_the_authors_within_one_level(golden, case, fix):
    """They truncate to 8 bits where we round, and take adain's colours from the picture that was not enlarged."""
    from PIL import Image

    decoded = (golden[f"{case}/decoded"].clamp(-1, 1) / 2 + 0.5) * 255
    expected = golden[f"{case}/png_{fix}"]
    height, width = expected.shape[:2]
    pixels = decoded[0].permute(1, 2, 0).numpy().astype(np.uint8)
    small = golden[f"{case}/lr_image_uint8"]
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


# The whole restoration


def restored(restorer: Restorer, image: Tensor, **changes) -> Tensor:
    return restorer.restore(image, RestoreConfig.from_spec(TSDSR, **changes))


def test_restores_any_size_to_exactly_scale_times_it(golden, restorer):
    image = resize(photo(golden, "tiled"), (21, 17))
    result = restored(restorer, image, scale=3, seed=1)
    assert result.shape == (1, 3, 63, 51)
    assert result.isfinite().all() and result.std() > 0.01
    # Padding does not shift the picture: a canvas that needs none gives the same middle, away from the padded sides.
    assert restored(restorer, photo(golden, "tiled")).shape == (1, 3, 96, 160)


def test_seed_and_encoder_noise(golden, restorer):
    image = photo(golden, "single")
    one, again, other = (restored(restorer, image, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=1e-2)
    mean, same_mean = (restored(restorer, image, seed=seed, encoder_noise=0.0) for seed in (1, 2))
    assert torch.equal(mean, same_mean) and not torch.allclose(mean, one, atol=1e-2)


def test_seed_is_the_one_of_the_noise(golden, restorer):
    """A seed draws the noise that ComfyUI draws; the rest is what the stages above have shown."""
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(7))
    config = RestoreConfig.from_spec(TSDSR, seed=7, color_fix="none")
    mean, spread = restorer.encode_start(make_canvas(photo(golden, "single"), 4, TSDSR))
    start = mean + spread * noise
    expected = restorer.decode(start - velocity(restorer, start))
    close(restorer.restore(photo(golden, "single"), config), expected, 1e-5)


def test_tile_batch_changes_nothing(golden, restorer):
    image, tiling = photo(golden, "tiled"), {"tile": 64, "overlap": 16}
    one, four = (restored(restorer, image, tile_batch=batch, **tiling) for batch in (1, 4))
    torch.testing.assert_close(one, four, rtol=0, atol=1e-4)
    assert not torch.allclose(one, restored(restorer, image), atol=1e-2)


def test_prompts_and_steps_are_the_models_own(golden, restorer):
    image = photo(golden, "single")
    with pytest.warns(UserWarning, match="prompt has no effect: TSD-SR"):
        prompted = restored(restorer, image, prompt="a house")
    assert torch.equal(prompted, restored(restorer, image))
    for change in ({"steps": 4}, {"sigma_start": 0.5}):
        with pytest.raises(ValueError, match="expected steps 1 and sigma_start 1 for TSD-SR"):
            restored(restorer, image, **change)
    with pytest.raises(ValueError, match="expected control_scale 1 for TSD-SR"):
        restored(restorer, image, control_scale=0.0)


def test_command_line_restores_and_shows_the_licence(golden, paths, restorer, tmp_path, capsys, caplog):
    from PIL import Image

    Image.fromarray(golden["tiled/lr_image_uint8"].numpy()).save(tmp_path / "in.png")
    options = ["--base", paths["base"], "--control", paths["control"].parent, "--autoencoder", paths["autoencoder"]]
    with caplog.at_level(logging.INFO, logger="eam_core"):
        assert main(["upscale", str(tmp_path / "in.png"), str(tmp_path / "out.png"), *map(str, options)]) == 0
    assert "Apache" in capsys.readouterr().err and "Apache" in caplog.text
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "out.png"))).permute(2, 0, 1)[None].float() / 255
    close(pixels, restored(restorer, photo(golden, "tiled")), 1 / 255)


def test_own_text_encoders_embed_the_fixed_prompt(golden, paths, monkeypatch):
    from eam_core import loading

    asked = []

    class Encoders:
        def encode(self, prompts: list[str]) -> list[Text]:
            asked.extend(prompts)
            return [golden.text] * len(prompts)

    beside = read_companions(paths["control"], read_weights(paths["control"]), TSDSRParams(depth=2, hidden_size=128))
    params = mmdit_params(golden.base)
    without = type(beside)(transformer=beside.transformer, encoder=beside.encoder, missing_text="nothing there")
    text = loading._fixed_text(Encoders(), without, TSDSR, params)
    assert torch.equal(text.encode(["", ""])[1].context, golden.text.context)
    assert asked == [TSDSR.fixed_prompt] and "extrememeticulous" in TSDSR.fixed_prompt
    with pytest.raises(CheckpointError, match="nothing there, or name text encoders"):
        loading._fixed_text(None, without, TSDSR, params)


# Refusals


@pytest.fixture
def files(golden, tmp_path):
    """A fresh copy of the control's folder, to be damaged."""
    return golden.save_control(tmp_path / "control")


def changed(path: Path, change) -> Path:
    state = change(load_file(path))
    path.unlink()
    save_file(state, path)
    return path


def load(paths, **changes):
    return Restorer.from_files(**paths | changes)


def test_missing_autoencoder_part(paths, files):
    (files.parent / "vae.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected vae.safetensors beside transformer.safetensors, found none"):
        load(paths, control=files)


def test_missing_embeddings_name_the_command(paths, files):
    (files.parent / "embeddings.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"embeddings.safetensors beside .*convert-embedding prompt_embeds.pt"):
        load(paths, control=files)


def test_embeddings_of_other_sizes_and_pickles_under_their_name(paths, files):
    embeddings = files.parent / "embeddings.safetensors"
    save_embeddings(embeddings, Text(torch.zeros(1, 3, 48), torch.zeros(1, 32)))
    with pytest.raises(CheckpointError, match=r"embeddings of 64 and 32 channels .* has 48 and 32"):
        load(paths, control=files)
    embeddings.unlink()
    torch.save(torch.zeros(1), embeddings)
    with pytest.raises(CheckpointError, match="is a pickle"):
        load(paths, control=files)


def test_embeddings_without_batch_axis(tmp_path):
    save_file({"prompt_embeds": torch.ones(5, 6).half(), "pool_embeds": torch.ones(4)}, tmp_path / "e.safetensors")
    text = read_embeddings(tmp_path / "e.safetensors")
    assert (text.context.shape, text.pooled.shape, text.context.dtype) == ((1, 5, 6), (1, 4), torch.float32)
    save_file({"prompt_embeds": torch.ones(2, 5, 6), "pool_embeds": torch.ones(4)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match="expected one prompt"):
        read_embeddings(tmp_path / "two.safetensors")


def test_autoencoder_part_chosen_as_control(paths, files):
    with pytest.raises(CheckpointError, match=r"LoRA of the autoencoder \(its transformer.safetensors is the file"):
        load(paths, control=files.parent / "vae.safetensors")


def test_auxiliary_lora_of_training(paths, files):
    attention = ("attn.to_", "attn.add_")
    changed(files, lambda state: {key: value for key, value in state.items() if any(a in key for a in attention)})
    with pytest.raises(CheckpointError, match=r"transformer_reg.safetensors"):
        load(paths, control=files)


def test_teacher_beside_no_autoencoder_part(paths, files, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    shutil.copy(files, teacher)
    with pytest.raises(CheckpointError, match=r"expected vae.safetensors beside teacher.safetensors"):
        load(paths, control=teacher)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "blocks.1.attn.to_q" not in k}, r"LoRA of 24 modules, .* lacks"),
        (lambda s: {k: v for k, v in s.items() if "blocks.1.attn.to_q.lora_B" not in k}, "expected both lora_A.weight"),
        (lambda s: s | {k: v[:2] for k, v in s.items() if "proj_out.lora_A" in k}, "matrices of one rank for proj_out"),
        (lambda s: s | {k: v[:64] for k, v in s.items() if "0.norm1.linear.lora_B" in k}, "768 x 128 values, .* 64 x"),
        (
            lambda s: (
                s | {f"transformer.transformer_blocks.0.attn2.to_q.lora_{x}.weight": torch.zeros(4, 4) for x in "AB"}
            ),
            r"adds \['transformer_blocks.0.attn2.to_q'\].* of another model",
        ),
    ],
    ids=["module missing", "half a module", "ranks differ", "shape", "SD3.5's second attention"],
)
def test_damaged_and_foreign_loras(paths, files, change, message):
    with pytest.raises(CheckpointError, match=message):
        load(paths, control=changed(files, change))


def test_truncated_file(paths, files):
    files.write_bytes(files.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load(paths, control=files)


def test_incomplete_autoencoder_part(paths, files):
    changed(files.parent / "vae.safetensors", lambda s: {k: v for k, v in s.items() if "conv_in" not in k})
    with pytest.raises(CheckpointError, match=r"31 modules of the encoder .*, got 30"):
        load(paths, control=files)


def test_sdxl_as_base_and_small_autoencoder(paths, tmp_path):
    save_file({"conditioner.embedders.1.model.ln_final.weight": torch.zeros(2)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(CheckpointError, match="holds an SDXL model"):
        load(paths, base=tmp_path / "sdxl.safetensors")
    from eam_core.presets import EMBEDDED

    with pytest.raises(CheckpointError, match="folder of SD3's autoencoder"):
        load(paths, autoencoder=EMBEDDED.autoencoder)


def test_spec_is_told_from_the_files_without_reading_weights(paths):
    assert spec_of_files(paths["base"], paths["control"]) is TSDSR
    assert spec_of_files(paths["base"], paths["control"].parent) is TSDSR
