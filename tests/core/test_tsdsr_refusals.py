"""Files of TSD-SR that are missing, damaged or another model's are refused in a sentence that says what to do."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eam_core.companions import read_embeddings, save_embeddings
from eam_core.denoiser import Text
from eam_core.errors import CheckpointError
from eam_core.loading import spec_of_files
from eam_core.pipeline import Restorer
from eam_core.presets import TSDSR

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def files(tsdsr, tmp_path):
    """A fresh copy of the control's folder, to be damaged."""
    return tsdsr.save_control(tmp_path / "control")


def changed(path: Path, change) -> Path:
    state = change(load_file(path))
    path.unlink()
    save_file(state, path)
    return path


def load(paths, **changes):
    return Restorer.from_files(**paths | changes)


def test_missing_autoencoder_part(tsdsr_paths, files):
    (files.parent / "vae.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected vae.safetensors beside transformer.safetensors, found none"):
        load(tsdsr_paths, control=files)


def test_missing_embeddings_name_the_command(tsdsr_paths, files):
    (files.parent / "embeddings.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"embeddings.safetensors beside .*convert-embedding prompt_embeds.pt"):
        load(tsdsr_paths, control=files)


def test_embeddings_of_other_sizes_and_pickles_under_their_name(tsdsr_paths, files):
    embeddings = files.parent / "embeddings.safetensors"
    save_embeddings(embeddings, Text(torch.zeros(1, 3, 48), torch.zeros(1, 32)))
    with pytest.raises(CheckpointError, match=r"embeddings of 64 and 32 channels .* has 48 and 32"):
        load(tsdsr_paths, control=files)
    embeddings.unlink()
    torch.save(torch.zeros(1), embeddings)
    with pytest.raises(CheckpointError, match="is a pickle"):
        load(tsdsr_paths, control=files)


def test_embeddings_without_batch_axis(tmp_path):
    save_file({"prompt_embeds": torch.ones(5, 6).half(), "pool_embeds": torch.ones(4)}, tmp_path / "e.safetensors")
    text = read_embeddings(tmp_path / "e.safetensors")
    assert (text.context.shape, text.pooled.shape, text.context.dtype) == ((1, 5, 6), (1, 4), torch.float32)
    save_file({"prompt_embeds": torch.ones(2, 5, 6), "pool_embeds": torch.ones(4)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match="expected one prompt"):
        read_embeddings(tmp_path / "two.safetensors")


def test_autoencoder_part_chosen_as_control(tsdsr_paths, files):
    with pytest.raises(CheckpointError, match=r"LoRA of the autoencoder \(its transformer.safetensors is the file"):
        load(tsdsr_paths, control=files.parent / "vae.safetensors")


def test_auxiliary_lora_of_training(tsdsr_paths, files):
    attention = ("attn.to_", "attn.add_")
    changed(files, lambda state: {key: value for key, value in state.items() if any(a in key for a in attention)})
    with pytest.raises(CheckpointError, match=r"transformer_reg.safetensors"):
        load(tsdsr_paths, control=files)


def test_teacher_beside_no_autoencoder_part(tsdsr_paths, files, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    shutil.copy(files, teacher)
    with pytest.raises(CheckpointError, match=r"expected vae.safetensors beside teacher.safetensors"):
        load(tsdsr_paths, control=teacher)


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
def test_damaged_and_foreign_loras(tsdsr_paths, files, change, message):
    with pytest.raises(CheckpointError, match=message):
        load(tsdsr_paths, control=changed(files, change))


def test_truncated_file(tsdsr_paths, files):
    files.write_bytes(files.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load(tsdsr_paths, control=files)


def test_incomplete_autoencoder_part(tsdsr_paths, files):
    changed(files.parent / "vae.safetensors", lambda s: {k: v for k, v in s.items() if "conv_in" not in k})
    with pytest.raises(CheckpointError, match=r"31 modules of the encoder .*, got 30"):
        load(tsdsr_paths, control=files)


def test_sdxl_as_base_and_small_autoencoder(tsdsr_paths, tmp_path):
    save_file({"conditioner.embedders.1.model.ln_final.weight": torch.zeros(2)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(CheckpointError, match="holds an SDXL model"):
        load(tsdsr_paths, base=tmp_path / "sdxl.safetensors")
    from eam_core.presets import EMBEDDED

    with pytest.raises(CheckpointError, match="folder of SD3's autoencoder"):
        load(tsdsr_paths, autoencoder=EMBEDDED.autoencoder)


def test_spec_is_told_from_the_files_without_reading_weights(tsdsr_paths):
    assert spec_of_files(tsdsr_paths["base"], tsdsr_paths["control"]) is TSDSR
    assert spec_of_files(tsdsr_paths["base"], tsdsr_paths["control"].parent) is TSDSR
