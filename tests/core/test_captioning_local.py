"""Answers of local vision-language models: transformers' real classes and processors, with small random weights."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from local_model_chats import KINDS, SHORT, picture, small

from eam_core.captioning.local import LocalModel
from eam_core.captioning.messages import CaptionError, GenerateConfig, Message
from eam_core.captioning.prompt import load_prompt
from eam_core.captioning.seeded_sampling import SeededSampling
from eam_core.captioning.source import open_model


def asked(height=320, width=480, seed=0, mode="sa", **options):
    return load_prompt().conversation(picture(height, width, seed), mode, **options)


def image_tokens(kind, height, width):
    """Tokens of one picture, by the models' rules."""
    if kind == "smolvlm":  # four tokens a tile, the longer side enlarged to two tiles of 64, and the whole
        longest = max(height, width)
        return 4 * (math.ceil(height * 128 / longest / 64) * math.ceil(width * 128 / longest / 64) + 1)
    if kind.startswith("minicpm"):  # enlarged to the area of 448 x 448, one token for 56 x 56
        tall = int(448 / math.sqrt(width / height))
        return round(tall / 56) * round(int(tall * width / height) / 56)
    side = 28 if kind == "qwen2_5_vl" else 32
    return round(height / side) * round(width / side)


def read_by(model, conversation, monkeypatch):
    """Return what the model gets of a conversation."""
    inputs = {}

    def stop(**given):
        inputs.update(given)
        raise RuntimeError("seen enough")

    with monkeypatch.context() as patch:
        patch.setattr(model.module, "generate", stop)
        with pytest.raises(CaptionError, match=rf"expected an answer from {model.folder.path.name}, .*\(seen enough\)"):
            model.generate([conversation], SHORT)
    return inputs


@pytest.mark.parametrize("kind", KINDS)
def test_every_turn_has_its_picture(local_models, kind, monkeypatch):
    model = local_models[kind]
    plain = torch.ones(3, 320, 480)
    read = read_by(model, load_prompt().conversation(plain, "sa"), monkeypatch)
    tokenizer = model.chat.processor.tokenizer
    text = tokenizer.decode(read["input_ids"][0])
    system, *turns = text.split("User:" if kind == "smolvlm" else "<|im_start|>user\n")
    assert load_prompt().texts["sa"]["instruction"] in system
    mark = "<image>" if kind == "smolvlm" else "<|image_pad|>"
    pictures = [example.picture for example in load_prompt().examples] + [plain]
    assert [turn.count(mark) for turn in turns] == [image_tokens(kind, *each.shape[-2:]) for each in pictures]
    for turn, example in zip(turns, load_prompt().examples):
        question, answer = turn.rindex(mark), turn.index(example.answer)
        assert question < turn.index("Answer for this picture as instructed.") < answer
    assert mark not in system
    # The last picture lies last in the pixels too: it alone is white.
    pixels = {"smolvlm": 1, "minicpmv4_6": -1, "minicpmv4_7": -1}.get(kind, 0)
    values = read["pixel_values"].movedim(pixels, 0)
    last, first = values[-1:], values[:1]
    assert last.mean() > 0.9 and last.std() < 0.5 < last.mean()
    assert not torch.equal(first, last)
    if kind in ("minicpmv4_6", "smolvlm"):  # transformers itself compares image tokens with what the pictures give
        told = []
        model.generate([load_prompt().conversation(plain, "sa")], SHORT, lambda *numbers: told.append(numbers))
        assert (1, 16) in told


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_the_seed_and_not_the_batch(local_models, kind):
    model = local_models[kind]
    conversations = [small(), small("Name all things in these two.", 2, seed=5), small(seed=9)]
    together = model.generate(conversations, SHORT)
    assert together == [model.generate([each], SHORT)[0] for each in conversations]
    assert len(set(together)) == 3  # pictures and words both change the answer
    assert model.generate(conversations[:1], replace(SHORT, seed=4)) != together[:1]
    if kind == KINDS[0]:
        greedy = [model.generate(conversations[:1], replace(SHORT, seed=seed, temperature=0)) for seed in (1, 2)]
        assert greedy[0] == greedy[1] != together[:1]


@pytest.mark.parametrize("kind", ("minicpmv4_6", "qwen2_5_vl"))
def test_greedy_is_the_largest_logit_whatever_the_folder_says(local_models, local_folders, kind):
    settings = json.loads((local_folders[kind] / "generation_config.json").read_text())
    assert settings["repetition_penalty"] == 5.0 and settings["do_sample"]
    model, conversation = local_models[kind], small()
    inputs = model.chat.inputs([model.chat.lay(conversation)])
    expected: list[int] = []
    for _ in range(16):
        with torch.no_grad():
            logits = model.module(**inputs).logits
        expected.append(int(logits[0, -1].argmax()))
        token = torch.tensor([expected[-1:]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(token)], 1)
    config = GenerateConfig(max_tokens=16, temperature=0.0)
    assert model.generate([conversation], config) == [model.chat.decode(torch.tensor(expected))]


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    sampling = SeededSampling(seed=7, temperature=0.5)
    drawn = Counter(int(sampling(torch.empty(1, 0), logits).argmax()) for _ in range(4_000))
    # At temperature 0.5: 0.865, 0.117, 0.016, 0.002. The first two are the least that make 0.9.
    assert set(drawn) == {0, 1}
    assert drawn[1] / 4_000 == pytest.approx(0.117 / 0.982, abs=0.02)


def test_numbers_that_are_none_are_a_broken_model():
    with pytest.raises(CaptionError, match="got values that are no numbers"):
        SeededSampling(0, 0.3)(torch.empty(1, 0), torch.tensor([[0.0, torch.nan]]))


def test_an_answer_ends_at_its_end_token(local_models, monkeypatch):
    model = local_models["qwen2_5_vl"]
    tokens = []
    settings = model.module.generation_config
    assert model.chat.processor.tokenizer.eos_token_id in settings.eos_token_id
    monkeypatch.setattr(model.chat, "decode", lambda row: tokens.append(row.tolist()) or "")
    model.generate([small()], SHORT)
    assert len(tokens[0]) == 16
    monkeypatch.setattr(settings, "eos_token_id", [tokens[0][5]])
    told = []
    model.generate([small()], SHORT, lambda *numbers: told.append(numbers))
    assert told[-1] == (tokens[0].index(tokens[0][5]) + 1, 16)


def test_an_answer_without_an_end_is_given_as_far_as_it_came(local_models):
    model = local_models["qwen2_5_vl"]
    (whole,), (broken,) = (
        model.generate([small()], GenerateConfig(max_tokens=most, seed=3, temperature=1.0)) for most in (24, 16)
    )
    assert broken and whole.startswith(broken.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_pictures_are_prepared_once(local_models, monkeypatch):
    model, seen = local_models["qwen2_5_vl"], []
    processor = model.chat.processor.image_processor
    prepare = processor.preprocess

    def count(images, *args, **options):
        seen.append(sum(len(each) if isinstance(each, list) else 1 for each in images))
        return prepare(images, *args, **options)

    monkeypatch.setattr(processor, "preprocess", count)
    model.generate([small(number=3)], SHORT)
    assert seen == [3]
    seen.clear()
    model.generate([small(), small(seed=4)], SHORT)
    assert seen == [1, 1, 2]


def test_what_does_not_fit_the_context_fails_alone(local_models, monkeypatch):
    model = local_models["qwen2_5_vl"]
    monkeypatch.setattr(model.config.get_text_config(), "max_position_embeddings", 400)
    long, fitting = model.generate([asked(), small()], SHORT)
    assert isinstance(long, CaptionError)
    assert str(long).startswith("expected a conversation and answer of at most 400 tokens for qwen2_5_vl, got 5")
    assert fitting == model.generate([small()], SHORT)[0]


def test_a_picture_nobody_can_read_fails_alone(local_models):
    stripe = (Message("user", (torch.rand(3, 1, 400), "What?")),)
    failed, fitting = local_models["qwen2_5_vl"].generate([stripe, small()], SHORT)
    assert isinstance(failed, CaptionError) and "aspect ratio must be smaller" in str(failed)
    assert isinstance(fitting, str)


def test_nothing_is_said_on_the_screen(local_folders, capfd, caplog):
    model = LocalModel(local_folders["minicpmv4_7"], device="cpu")
    model.generate([small()], SHORT)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_path_opens_a_local_model(local_folders):
    model = open_model(str(local_folders["smolvlm"]), device="cpu")
    assert isinstance(model, LocalModel) and model.device == torch.device("cpu")
