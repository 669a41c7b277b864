"""DiT4SR in a whole restoration, from the library and from the command line."""

import dataclasses
import warnings

import pytest
import torch
from dit4sr_golden import needs_golden, save_folder
from PIL import Image
from safetensors.torch import save_file

from eam_core.cli import main
from eam_core.errors import CheckpointError
from eam_core.loading import spec_of_files
from eam_core.model.dit4sr import is_control_key
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import save_weights


@needs_golden
def test_restorer_runs_it_with_its_authors_settings_and_says_what_it_is(tmp_path, tiny, dit4sr, caplog):
    folder = save_folder(tmp_path / "dit4sr_q" / "transformer", dit4sr.weights, 2)
    save_weights(tmp_path / "autoencoder.safetensors", tiny.autoencoder().state_dict())
    paths = {"base": folder, "control": folder.parent, "autoencoder": tmp_path / "autoencoder.safetensors"}
    spec = spec_of_files(paths["base"], paths["control"])
    assert (spec.steps, spec.cfg_scale, spec.tile, spec.overlap, spec.color_fix) == (40, 8.0, 512, 192, "adain")
    assert (spec.sampler, spec.scheduler, spec.sigma_start, spec.shift) == ("euler", "normal", 1.0, 3.0)
    assert [RestoreConfig.from_spec(spec, tile=tile).overlap for tile in (512, 256, 1024)] == [192, 96, 192]
    with caplog.at_level("INFO", logger="eam_core"), warnings.catch_warnings():
        warnings.simplefilter("error")
        restorer = Restorer.from_files(**paths, control_settings={"key_rule": "first"})
    assert restorer.spec is spec
    assert "non-commercial" in caplog.text and "first release" in caplog.text
    image = torch.rand(1, 3, 40, 56)
    config = RestoreConfig.from_spec(spec, scale=4, steps=2, cfg_scale=1.0, tile=128, overlap=64, tile_batch=4)
    result = restorer.restore(image, config)
    assert result.shape == (1, 3, 160, 224)
    one_by_one = restorer.restore(image, dataclasses.replace(config, tile_batch=1))
    assert torch.allclose(one_by_one, result, atol=1e-5)
    revised = Restorer.from_files(**paths).restore(image, config)
    assert not torch.allclose(revised, result, atol=1e-3)
    with pytest.warns(UserWarning, match="control_scale has no effect except at 0"):
        assert torch.equal(restorer.restore(image, dataclasses.replace(config, control_scale=0.5)), result)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = restorer.restore(image, dataclasses.replace(config, control_scale=0.0))
    assert not torch.allclose(alone, result, atol=1e-3)


@needs_golden
def test_restorer_refuses_another_base_and_warns_of_a_finetuned_one(tmp_path, tiny, dit4sr):
    torch.manual_seed(0)
    control = save_folder(tmp_path / "transformer", dit4sr.weights)
    save_weights(tmp_path / "autoencoder.safetensors", tiny.autoencoder().state_dict())
    paths = {"control": control, "autoencoder": tmp_path / "autoencoder.safetensors"}
    tuned = {key: value + 0.05 * value.std() * torch.randn(value.shape) for key, value in dit4sr.base.items()}
    save_weights(tmp_path / "tuned.safetensors", tuned)
    with pytest.warns(UserWarning, match="comes with a base of its own that differs from the one in use"):
        Restorer.from_files(base=tmp_path / "tuned.safetensors", **paths)
    params = MMDiTParams(depth=2, hidden_size=128, context_size=64, pooled_size=32, pos_embed_max_size=16)
    save_weights(tmp_path / "sd3.safetensors", MMDiT(params).state_dict())
    with pytest.raises(CheckpointError, match="qk_norm True instead of False, dual_attention_blocks 0 to 0 instead of"):
        Restorer.from_files(base=tmp_path / "sd3.safetensors", **paths)
    save_file(
        {key: value for key, value in dit4sr.weights.items() if is_control_key(key)}, tmp_path / "alone.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"SD3-family transformer, but alone\S* holds EAM control weights"):
        Restorer.from_files(base=tmp_path / "alone.safetensors", **paths)
    save_file({"conditioner.embedders.1.model.x": torch.zeros(1)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(CheckpointError, match=r"expected an SD3-family transformer, but sdxl\S* holds an SDXL"):
        Restorer.from_files(base=tmp_path / "sdxl.safetensors", **paths)


@needs_golden
def test_command_line_takes_the_folder_and_settings(tmp_path, tiny, dit4sr, capsys):
    folder = save_folder(tmp_path / "dit4sr_f" / "transformer", dit4sr.weights)
    save_weights(tmp_path / "autoencoder.safetensors", tiny.autoencoder().state_dict())
    Image.new("RGB", (32, 24), "gray").save(tmp_path / "in.png")
    model = [
        "--base",
        str(folder),
        "--control",
        str(folder),
        "--autoencoder",
        str(tmp_path / "autoencoder.safetensors"),
    ]
    fast = ["--steps", "1", "--cfg", "1", "--tile", "128", "--control-setting", "key_rule=first"]
    assert main(["upscale", str(tmp_path / "in.png"), str(tmp_path / "out.png"), *model, *fast]) == 0
    said = capsys.readouterr().err
    assert "non-commercial" in said and "first release (dit4sr_q, dit4sr_f)" in said
    assert Image.open(tmp_path / "out.png").size == (128, 96)
    assert main(["upscale", str(tmp_path / "in.png"), str(tmp_path / "x.png"), *model, *fast[:-1], "rule=1"]) == 2
    assert "expected settings that this control has" in capsys.readouterr().err
