"""The text cache: every caption once, the same as the encoders say, never mixed, and a run goes on where it stopped."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from comfy_launch import define_missing_operators

from eam_core import sd3
from eam_core.denoiser import Text
from eam_core.errors import CheckpointError, DiskError, EAMError
from train import cache_text
from train.text_cache import TextCache, fingerprint

define_missing_operators()  # transformers is imported by the tests only

WIDTH = 32
CAPTIONS = {"one": "a red house", "two": "a small house", "three": "a red house"}


def save_clip(folder: Path, suffix: str, size: int) -> None:
    """Write a tiny CLIP text encoder, and a tokenizer that knows letters only."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer = folder / f"tokenizer{suffix}"
    tokenizer.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (tokenizer / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    config |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "projection_dim": size}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    clip = CLIPTextConfig(vocab_size=len(tokens), hidden_size=size, **heads, **ends)
    CLIPTextModelWithProjection(clip).save_pretrained(folder / f"text_encoder{suffix}")


def save_t5(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "a", "small", "red", "house"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(
        folder / "tokenizer_3"
    )
    config = T5Config(vocab_size=len(words), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD3 pipeline's folder with tiny random text encoders."""
    folder = tmp_path_factory.mktemp("sd3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_clip(folder, "", 8)
        save_clip(folder, "_2", 16)
        save_t5(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, caption in CAPTIONS.items():
        Image.new("RGB", (64, 64)).save(folder / f"{name}.png")
        (folder / f"{name}.sa.txt").write_text(caption + "\n")
    return folder


@pytest.fixture
def cache_text_main(encoders, photos, tmp_path, monkeypatch):
    """Run the command on the photos; further words replace options."""

    def run(*more: str) -> Path:
        words = ["--data", photos, "--captions", "sa", "--text-encoders", encoders, "--cache", tmp_path / "cache"]
        monkeypatch.setattr(sys, "argv", ["cache_text", *map(str, words), *more])
        cache_text.main()
        return tmp_path / "cache"

    return run


def embedding(value: float = 0.0) -> Text:
    return Text(torch.full((1, 5, 8), value), torch.full((1, 4), value))


def test_command_encodes_each_caption_and_the_empty_one_as_the_encoders_do(encoders, cache_text_main, capsys):
    cache = TextCache(cache_text_main("--batch-size", "2"))
    assert "3 captions encoded" in capsys.readouterr().out
    assert len(list(cache.folder.glob("*.safetensors"))) == 3
    context, pooled = cache.read(["a small house", "a red house"])
    assert (context.shape, pooled.shape) == ((2, 333, WIDTH), (2, 24))
    assert context.dtype == pooled.dtype == torch.float32
    wanted = sd3.SD3TextEncoder(encoders, context_size=WIDTH).encode(["a small house", "a red house", ""])
    for got, text in zip(zip(context, pooled), wanted):
        torch.testing.assert_close(got[0], text.context[0], rtol=2**-8, atol=1e-6)
        torch.testing.assert_close(got[1], text.pooled[0], rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(cache.null()[0], wanted[2].context, rtol=2**-8, atol=1e-6)
    assert cache.null()[1].shape == (1, 24)


def test_each_encoder_is_loaded_once_for_many_batches(cache_text_main, monkeypatch):
    loaded = []

    def noting(load):
        def note(kind, folder, *more, **options):
            loaded.append(folder.name)
            return load(kind, folder, *more, **options)

        return note

    for name in ("load_module", "load_tokenizer"):
        monkeypatch.setattr(sd3, name, noting(getattr(sd3, name)))
    cache_text_main("--batch-size", "1")
    parts = ["text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"]
    assert sorted(loaded) == parts


def test_a_second_run_encodes_only_what_is_new(cache_text_main, photos, capsys, monkeypatch):
    cache = cache_text_main()
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    (photos / "two.sa.txt").write_text("a house")
    (cache / ".left.part").write_bytes(b"of a killed run")
    cache_text_main()
    assert "1 captions encoded" in capsys.readouterr().out.splitlines()[-1]
    after = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()
    for name in ("load_module", "load_tokenizer"):
        monkeypatch.setattr(sd3, name, lambda *a, **k: pytest.fail("nothing is left to encode"))
    cache_text_main()


def test_a_stopped_run_leaves_whole_files_only(cache_text_main, monkeypatch):
    encode = sd3.SD3TextEncoder._encode
    batches = []

    def stop(self, prompts):
        batches.append(prompts)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return encode(self, prompts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sd3.SD3TextEncoder, "_encode", stop)
        cache_text_main("--batch-size", "1")
    cache = cache_text_main()
    assert len(TextCache(cache).read(["", *CAPTIONS.values()])[0]) == 4


def test_other_encoders_are_not_mixed_in(cache_text_main, encoders, tmp_path):
    cache_text_main()
    other = tmp_path / "other"
    shutil.copytree(encoders, other)
    config = json.loads((other / "text_encoder" / "config.json").read_text())
    (other / "text_encoder" / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert fingerprint(other) != fingerprint(encoders)
    with pytest.raises(EAMError, match=r"cache of the same encoders in .*, got one of others; use a new --cache"):
        cache_text_main("--text-encoders", str(other))


def test_bfloat16_on_disk(tmp_path):
    cache = TextCache.create(tmp_path / "new" / "cache", "abc")
    cache.write("x", embedding(1 / 3))
    (file,) = cache.folder.glob("*.safetensors")
    assert file.stat().st_size < 2 * (5 * 8 + 4) + 400
    assert cache.read(["x"])[1][0, 0] == torch.tensor(1 / 3).bfloat16()


def test_a_caption_that_was_not_encoded_is_named_with_the_way_out(tmp_path):
    cache = TextCache.create(tmp_path, "abc")
    cache.write("known", embedding())
    assert "known" in cache and "unknown" not in cache
    with pytest.raises(EAMError, match=r"caption 'unknown' in .*, found none; run python -m train.cache_text") as error:
        cache.read(["known", "unknown"])
    assert "\n" not in str(error.value)
    with pytest.raises(EAMError, match=r"caption 'y{57}\.\.\.'"):
        cache.read(["y" * 500])
    with pytest.raises(EAMError, match="caption '' in"):
        cache.null()


def test_damaged_and_missing_folders_are_one_sentence(tmp_path, cache_text_main, photos):
    with pytest.raises(EAMError, match=r"text cache in .*nowhere, found none; make it with python -m train.cache_text"):
        TextCache(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="choose another --cache folder"):
        TextCache.create(tmp_path / "file" / "cache", "abc")
    cache = TextCache.create(tmp_path / "cache", "abc")
    cache.write("x", embedding())
    next(cache.folder.glob("*.safetensors")).write_bytes(b"cut off")
    with pytest.raises(CheckpointError):
        cache.read(["x"])
    (cache.folder / "encoders.json").write_text("{")
    with pytest.raises(EAMError, match="got one of others"):
        TextCache.create(cache.folder, "abc")
    (photos / "one.sa.txt").unlink()
    with pytest.raises(EAMError, match=r"one: expected a caption in photos/one\.sa\.txt"):
        cache_text_main("--cache", str(tmp_path / "third"))
    with pytest.raises(CheckpointError, match="text_encoder in it"):
        cache_text_main("--text-encoders", str(tmp_path))
    with pytest.raises(SystemExit, match="2"):
        cache_text_main("--batch-size", "0")
