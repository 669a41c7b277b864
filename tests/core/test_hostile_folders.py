"""Folders of networks from strangers: what transformers and diffusers are handed is checked before they open it."""

import json
from types import SimpleNamespace

import pytest
import torch

from eam_core.captioning.local import LocalModel
from eam_core.captioning.messages import CaptionError
from eam_core.errors import CheckpointError
from eam_core.pretrained import load_module
from eam_core.pretrained_checks import check_folder
from eam_core.weight_files import save_weights

CONFIGS = {
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers' is beyond 512"),
    "a width beyond numbers": ({"hidden_size": 10**18}, "hidden_size' is beyond"),
    "in an inner part": ({"vision_config": {"sizes": [10**18]}}, "sizes' is beyond"),
    "code for attention": ({"attn_implementation": "somebody/kernel"}, "names code from elsewhere"),
    "code for attention inside": (
        {"text_config": {"_attn_implementation_internal": "a/b"}},
        "names code from elsewhere",
    ),
    "nested": ("[" * 100_000, "damaged or made to do harm"),
    "nested within JSON": ('{"a":' * 100 + "1" + "}" * 100, "nested more than 32 deep"),
    "no settings": ("[]", "no list of settings"),
    "a megabyte": ('{"a": "' + "x" * 2**20 + '"}', "longer than"),
}


@pytest.mark.parametrize(("config", "reason"), CONFIGS.values(), ids=CONFIGS)
def test_settings_made_to_do_harm(tmp_path, config, reason):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(CheckpointError, match=reason):
        check_folder(tmp_path, "a model")


def test_folders_that_lead_to_pickles_or_elsewhere(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    with pytest.raises(CheckpointError, match=r"only \.safetensors files are opened"):
        check_folder(tmp_path, "a model")
    index.unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="would load another one from elsewhere"):
        check_folder(tmp_path, "a model")


class Greedy(torch.nn.Module):
    """Stands in for a class of transformers whose settings ask for a network of a trillion numbers."""

    config_class = SimpleNamespace(from_pretrained=lambda folder, **_: None)
    loaded: list[dict] = []  # noqa: RUF012

    def __init__(self, config) -> None:
        super().__init__()
        self.large = torch.nn.Linear(10**6, 10**6)

    @classmethod
    def from_pretrained(cls, folder, **options):
        cls.loaded.append(options)


def test_a_network_larger_than_its_files_is_not_made(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"found no safetensors file; pickles \(\.bin, \.pt\) are never opened"):
        load_module(Greedy, tmp_path, "a network")
    save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"its config\.json asks for 1000001000000 numbers and the files hold 4"):
        load_module(Greedy, tmp_path, "a network")
    assert Greedy.loaded == []
    monkeypatch.setattr("eam_core.pretrained._SMALL", 2**41)
    load_module(Greedy, tmp_path, "a network")
    assert Greedy.loaded == [{"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}]


def test_a_captioner_whose_settings_ask_for_more_than_its_files_hold(local_copy, captioning_models):
    config = json.loads((local_copy / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]

    def refused(message: str, **changes) -> None:
        captioning_models.edit_json(local_copy / "config.json", text_config=text | changes)
        with pytest.raises(CaptionError, match=message):
            LocalModel(local_copy, device="cpu").read()

    refused("asks for [0-9]+ numbers and the files hold", vocab_size=2**24)
    refused(r"expected .*config", num_attention_heads=0, head_dim=None)
    refused("is beyond 512", num_hidden_layers=100_000)
    refused(r"expected .*config", hidden_size="wide")


def test_settings_of_a_captioner_without_end(local_copy):
    with (local_copy / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(
        CaptionError, match=r"expected settings of at most [0-9]+ bytes, got 1099511627776 in .*tokenizer"
    ):
        LocalModel(local_copy, device="cpu").folder.identify(lambda: None)
