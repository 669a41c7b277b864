"""Folders of local vision-language models: told apart by what is in them, and refused where it does not do."""

import json
import shutil

import pytest
import torch
from local_model_chats import SHORT, refused, small
from safetensors.torch import load_file, save_file

from eam_core import pretrained
from eam_core.captioning import model_folder
from eam_core.captioning.local import LocalModel
from eam_core.captioning.messages import CaptionError


def test_identity_tells_models_apart(local_copy, captioning_models):
    identity = LocalModel(local_copy, device="cpu").identity
    assert identity.startswith("Qwen2_5_VLForConditionalGeneration model ")
    assert LocalModel(local_copy, device="cpu").identity == identity
    (local_copy / "README.md").write_text("words")
    assert LocalModel(local_copy, device="cpu").identity == identity
    captioning_models.edit_json(local_copy / "config.json", note="another")
    known = {identity, LocalModel(local_copy, device="cpu").identity}
    weights = load_file(local_copy / "model.safetensors")
    key = next(key for key in weights if "q_proj.weight" in key)

    def save(changes):
        save_file(weights | changes, local_copy / "model.safetensors", metadata={"format": "pt"})

    # Fine-tuned: as large as before, and one tensor is another.
    save({key: weights[key] + 0.01})
    known.add(LocalModel(local_copy, device="cpu").identity)
    save({"more": torch.zeros(1)})
    known.add(LocalModel(local_copy, device="cpu").identity)
    for name in ("chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (local_copy / name).write_text((local_copy / name).read_text() + " ")
        known.add(LocalModel(local_copy, device="cpu").identity)
    assert len(known) == 8


def test_identity_of_what_cannot_be_read(local_copy):
    model = LocalModel(local_copy, device="cpu")
    for damaged in (b"", b"\xff" * 8, (2**62).to_bytes(8, "little"), b"\2" + bytes(7) + b"[]"):
        (local_copy / "model.safetensors").write_bytes(damaged)
        assert LocalModel(local_copy, device="cpu").identity
    (local_copy / "model.safetensors").unlink()
    with pytest.raises(CaptionError, match=r"expected files that can be read in .*model, but No such file"):
        model.prepare()


def test_folders_without_a_model(local_copy, tmp_path, captioning_models):
    refused(tmp_path / "none", "expected the folder of a vision-language model at .*none, found none; nothing is down")
    refused(local_copy / "config.json", "expected the folder of a vision-language model")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no config.json; name the folder that config.json and")
    (tmp_path / "empty" / "model-Q4.gguf").touch()
    refused(tmp_path / "empty", "expected a transformers folder, found GGUF files .* serve the GGUF with llama.cpp")
    weights = local_copy / "model.safetensors"
    kept = weights.rename(local_copy / "kept")
    refused(local_copy, "expected model.safetensors in .*, found none; download the whole folder")
    (local_copy / "pytorch_model.bin").touch()
    refused(local_copy, "expected weights in safetensors in .*, found pickled ones only, which are never opened")
    index = local_copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    refused(local_copy, "expected 2 weight files in .*, but one.safetensors and 1 more are missing")
    index.write_text("{")
    refused(local_copy, "expected a list of shards in .*, but it is damaged")
    index.unlink()
    kept.rename(weights)
    captioning_models.edit_json(local_copy / "config.json", model_type=None)
    refused(local_copy, "its config.json names no model_type")
    (local_copy / "config.json").write_text("{")
    refused(local_copy, "expected a model's settings in .*config.json, but it is damaged")


def test_models_that_cannot_be_run(local_copy, tmp_path, captioning_models):
    text = captioning_models.build_text_model(tmp_path / "text")
    refused(text, r"expected a model that answers about pictures, but text \(qwen2\) is none")
    captioning_models.edit_json(local_copy / "config.json", model_type="minicpmv9")
    refused(local_copy, r"expected a transformers that knows minicpmv9, found \d.*pip install -U transformers")
    captioning_models.edit_json(local_copy / "config.json", auto_map={"AutoModel": "modeling.Model"})
    (local_copy / "modeling.py").write_text("raise SystemExit('the folder\\'s code ran')")
    refused(
        local_copy, r"model \(minicpmv9\) needs Python code from its folder, which is never run; choose MiniCPM-V 4.6"
    )


def test_transformers_missing_old_or_at_odds_with_torchvision(local_copy, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "import_module", missing)
        refused(local_copy, "expected the package transformers to run .*No module named 'transformers'")
        refused(local_copy, r'run pip install "\.\[caption\]" in the folder of this pack, or use an endpoint')
    for error, words in (
        (AttributeError("CONFIG_MAPPING"), r"expected a transformers with CONFIG_MAPPING, found \d"),
        (RuntimeError("operator torchvision::nms does not exist"), "nms does not exist.*torchvision and torch fit"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(model_folder, "transformers_class", lambda name, error=error: (_ for _ in ()).throw(error))
            refused(local_copy, words)


def broken(folder, words):
    """Refused at first use."""
    model = LocalModel(folder, device="cpu")
    with pytest.raises(CaptionError, match=words):
        model.generate([small()], SHORT)


def test_broken_weights(local_copy):
    weights = local_copy / "model.safetensors"
    state = load_file(weights)
    key = next(key for key in state if "q_proj" in key)
    save_file({name: value for name, value in state.items() if name != key}, weights, metadata={"format": "pt"})
    broken(local_copy, "expected a vision-language model in .*, but its weights lack .*q_proj.* and 0 more")
    weights.write_bytes(weights.read_bytes()[:2000])
    broken(local_copy, "expected a whole safetensors file, but model.safetensors is truncated")


def test_broken_processors(local_folders, local_copy, captioning_models):
    template = (local_copy / "chat_template.jinja").read_text()
    (local_copy / "chat_template.jinja").unlink()
    broken(local_copy, "expected a processor for pictures and words in .*, but it has no chat template")
    (local_copy / "chat_template.jinja").write_text(template)
    (local_copy / "tokenizer.json").write_text("{}")
    broken(local_copy, "expected a processor for pictures and words in .*, but it cannot be loaded")
    shutil.copy(local_folders["qwen2_5_vl"] / "tokenizer.json", local_copy)
    (local_copy / "processor_config.json").unlink()
    broken(local_copy, "expected a processor for pictures and words in ")


def test_a_package_that_a_processor_wants(local_folders, monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    broken(
        local_folders["smolvlm"], "expected the packages that a processor .* needs, but Package `num2words` is required"
    )
