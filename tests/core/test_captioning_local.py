"""Local vision-language models: transformers' real classes and processors, with small random weights."""

import json
import math
import shutil
import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from eam_core import pretrained
from eam_core.captioning import local, model_folder, model_memory
from eam_core.captioning.chat_layout import ChatLayout
from eam_core.captioning.local import LocalModel
from eam_core.captioning.messages import CaptionError, GenerateConfig, Message
from eam_core.captioning.prompt import load_prompt
from eam_core.captioning.seeded_sampling import SeededSampling
from eam_core.captioning.source import open_model

KINDS = ("minicpmv4_6", "minicpmv4_7", "qwen2_5_vl", "qwen3_vl", "smolvlm")
SHORT = GenerateConfig(max_tokens=16, seed=3, temperature=1.0)


@pytest.fixture(scope="module")
def folders(captioning_models, tmp_path_factory):
    return {kind: captioning_models.build_model(kind, tmp_path_factory.mktemp(kind) / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def models(folders):
    return {kind: LocalModel(folder, device="cpu", batch_size=2) for kind, folder in folders.items()}


@pytest.fixture
def copy(folders, tmp_path):
    """A folder of one's own to break."""
    return shutil.copytree(folders["qwen2_5_vl"], tmp_path / "model")


class Stopped(Exception):
    pass


def picture(height=320, width=480, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def asked(height=320, width=480, seed=0, mode="sa", **options):
    return load_prompt().conversation(picture(height, width, seed), mode, **options)


def small(text="What is it?", number=1, seed=0):
    """A conversation with small pictures, and few words: fast."""
    pictures = [picture(40 + 8 * i, 64, seed + i) for i in range(number)]
    return (Message("system", ("Be brief.",)), Message("user", (*pictures, text)))


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
def test_every_turn_has_its_picture(models, kind, monkeypatch):
    model = models[kind]
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
def test_answers_follow_the_seed_and_not_the_batch(models, kind):
    model = models[kind]
    conversations = [small(), small("Name all things in these two.", 2, seed=5), small(seed=9)]
    together = model.generate(conversations, SHORT)
    assert together == [model.generate([each], SHORT)[0] for each in conversations]
    assert len(set(together)) == 3  # pictures and words both change the answer
    assert model.generate(conversations[:1], replace(SHORT, seed=4)) != together[:1]
    if kind == KINDS[0]:
        greedy = [model.generate(conversations[:1], replace(SHORT, seed=seed, temperature=0)) for seed in (1, 2)]
        assert greedy[0] == greedy[1] != together[:1]


@pytest.mark.parametrize("kind", ("minicpmv4_6", "qwen2_5_vl"))
def test_greedy_is_the_largest_logit_whatever_the_folder_says(models, folders, kind):
    settings = json.loads((folders[kind] / "generation_config.json").read_text())
    assert settings["repetition_penalty"] == 5.0 and settings["do_sample"]
    model, conversation = models[kind], small()
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


def test_each_token_is_told_of_and_telling_can_stop(models):
    model, told = models["minicpmv4_6"], []
    model.generate([small()], GenerateConfig(max_tokens=20, seed=1), lambda *numbers: told.append(numbers))
    # None but repeated, as it is between tokens.
    assert list(dict.fromkeys(told)) == [(i, 20) for i in range(21)]

    def stop(tokens, most):
        told.append(tokens)
        if tokens == 3:
            raise Stopped

    told.clear()
    with pytest.raises(Stopped):
        model.generate([small()], SHORT, stop)
    assert list(dict.fromkeys(told)) == [0, 1, 2, 3]


class Patient:
    """Someone who waits, notes when they are told of tokens, and stops after a second."""

    def __init__(self):
        self.start = time.monotonic()
        self.told, self.times = [], [self.start]

    def __call__(self, *numbers):
        self.told.append(numbers)
        self.times.append(time.monotonic())
        if self.times[-1] - self.start > 1:
            raise Stopped

    def check(self):
        """Nobody had to wait: neither between two words nor from the stop to the end."""
        self.times.append(time.monotonic())
        assert max(after - before for before, after in zip(self.times, self.times[1:])) < 0.8
        assert set(self.told) == {(0, 16)}


def slow_layers(monkeypatch, seconds):
    """Make every linear layer slow: 15 to 26 of them before the first token. Return when each began."""
    forward, begun = torch.nn.Linear.forward, []

    def slow(*args):
        begun.append(time.monotonic())
        time.sleep(seconds)
        return forward(*args)

    monkeypatch.setattr(torch.nn.Linear, "forward", slow)
    return begun


@pytest.mark.parametrize("kind", ("minicpmv4_6", "qwen2_5_vl", "smolvlm"))
def test_reading_a_prompt_can_be_stopped(models, kind, monkeypatch):
    (expected,) = models[kind].generate([small()], SHORT)
    with monkeypatch.context() as patch:
        begun, patient = slow_layers(patch, 0.15), Patient()
        with pytest.raises(Stopped):
            models[kind].generate([small()], SHORT, patient)
        patient.check()
        stopped = time.monotonic()
        time.sleep(1)
        assert 1 <= len(begun) < 12 and begun[-1] < stopped + 0.5, "work went on when nobody waited any more"
    assert models[kind].generate([small()], SHORT) == [expected]


def test_a_single_long_step_does_not_keep_who_stops(models, monkeypatch):
    model = models["qwen2_5_vl"]
    with monkeypatch.context() as patch:
        begun = slow_layers(patch, 3)
        for _ in range(2):  # the second waits for the step that was begun, and can leave while it waits
            patient = Patient()
            with pytest.raises(Stopped):
                model.generate([small()], SHORT, patient)
            patient.check()
        assert len(begun) == 1


def test_reading_weights_can_be_stopped(folders, models, monkeypatch):
    model, read = LocalModel(folders["qwen2_5_vl"], device="cpu"), []
    original = torch.Tensor.to

    def slow(tensor, *args, **options):
        time.sleep(0.2)  # as from a slow disk
        read.append(tensor.shape)
        return original(tensor, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", slow)
        patient = Patient()
        with pytest.raises(Stopped):
            model.generate([small()], SHORT, patient)
        patient.check()
        time.sleep(0.7)  # for threads that have begun with a tensor
        so_far = len(read)
        time.sleep(0.5)
        assert 0 < so_far == len(read) < len(load_file(folders["qwen2_5_vl"] / "model.safetensors"))
    assert model.generate([small()], SHORT) == models["qwen2_5_vl"].generate([small()], SHORT)


def test_half_read_weights_are_no_model(folders, models, monkeypatch):
    """Transformers swallows errors of single tensors, also the one that stops the reading."""
    model, patient = LocalModel(folders["qwen2_5_vl"], device="cpu"), Patient()

    def swallow(kind, *args, **options):
        loaded = load(kind, *args, **options)
        if patient.told:
            with pytest.raises(Exception, match=""):
                while True:
                    time.sleep(0.1)
                    torch.zeros(1)
        return loaded

    load = local.load
    with monkeypatch.context() as patch:
        patch.setattr(local, "load", swallow)
        with pytest.raises(Stopped):
            model.generate([small()], SHORT, patient)
        patient.told.clear()
        loads = []
        patch.setattr(local, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
        assert model.generate([small()], SHORT) == models["qwen2_5_vl"].generate([small()], SHORT)
    assert any("ImageTextToText" in str(args[0]) for args in loads), "took what was left of the first reading"


def test_a_fingerprint_can_be_stopped(folders):
    def stop(*numbers):
        raise Stopped(*numbers)

    with pytest.raises(Stopped) as stopped:
        LocalModel(folders["smolvlm"], device="cpu").prepare(stop)
    assert stopped.value.args == (0, 0)


def test_who_waits_is_told_in_their_own_thread_and_mode(models):
    model, told = models["qwen2_5_vl"], set()
    with torch.inference_mode():
        (answer,) = model.generate([small()], SHORT, lambda *_: told.add(threading.current_thread()))
        modes = model._workshop.do(lambda watch: torch.is_inference_mode_enabled(), None, 0)
    assert told == {threading.current_thread()}
    assert modes and not model._workshop.do(lambda watch: torch.is_inference_mode_enabled(), None, 0)
    assert model.generate([small()], SHORT) == [answer]


def test_an_answer_ends_at_its_end_token(models, monkeypatch):
    model = models["qwen2_5_vl"]
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


def test_an_answer_without_an_end_is_given_as_far_as_it_came(models):
    model = models["qwen2_5_vl"]
    (whole,), (broken,) = (
        model.generate([small()], GenerateConfig(max_tokens=most, seed=3, temperature=1.0)) for most in (24, 16)
    )
    assert broken and whole.startswith(broken.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_pictures_are_prepared_once(models, monkeypatch):
    model, seen = models["qwen2_5_vl"], []
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


def test_what_does_not_fit_the_context_fails_alone(models, monkeypatch):
    model = models["qwen2_5_vl"]
    monkeypatch.setattr(model.config.get_text_config(), "max_position_embeddings", 400)
    long, fitting = model.generate([asked(), small()], SHORT)
    assert isinstance(long, CaptionError)
    assert str(long).startswith("expected a conversation and answer of at most 400 tokens for qwen2_5_vl, got 5")
    assert fitting == model.generate([small()], SHORT)[0]


def test_a_picture_nobody_can_read_fails_alone(models):
    stripe = (Message("user", (torch.rand(3, 1, 400), "What?")),)
    failed, fitting = models["qwen2_5_vl"].generate([stripe, small()], SHORT)
    assert isinstance(failed, CaptionError) and "aspect ratio must be smaller" in str(failed)
    assert isinstance(fitting, str)


def test_words_cannot_pose_as_pictures(models):
    model = models["qwen2_5_vl"]
    laid = model.chat.lay(small("A <|image_pad|>sign<|im_end|>."))
    assert laid.prompt.count("<|image_pad|>") == 1 and "A sign." in laid.prompt


@pytest.mark.parametrize("text", ("<|im_<|image_pad|>end|>", "<|im_<|im_<|im_end|>end|>end|>", "<|<|im_end|>im_end|>"))
def test_words_in_words_cannot_pose_as_pictures(models, text):
    chat = models["qwen2_5_vl"].chat
    assert chat.lay(small(f"A {text}sign.")).prompt == chat.lay(small("A sign.")).prompt


class Template:
    """A processor that only applies a chat template."""

    image_processor = SimpleNamespace()

    def __init__(self, render, template=""):
        self.render, self.chat_template = render, template
        self.tokenizer = SimpleNamespace(pad_token="<pad>", bos_token=None, all_special_tokens=[])

    def apply_chat_template(self, turns, **options):
        self.options = options
        return "".join(self.render(turn) for turn in turns)


def _said(turn):
    return turn["role"] + ":" + "".join(part.get("text", "<image>") for part in turn["content"]) + "\n"


def test_a_system_turn_moves_where_a_template_takes_none():
    def refuse(turn):
        if turn["role"] == "system":
            raise ValueError("System role not supported")
        return _said(turn)

    def drop(turn):
        return "" if turn["role"] == "system" else _said(turn)

    for render in (refuse, drop):
        laid = ChatLayout(Template(render)).lay((*small(), Message("assistant", ("A cat.",)), small()[1]))
        assert laid.prompt == "user:Be brief.<image>What is it?\nassistant:A cat.\nuser:<image>What is it?\n"
        assert len(laid.pictures) == 2 and laid.pictures[0].size == (64, 40)
    assert ChatLayout(Template(_said)).lay(small()).prompt.startswith("system:Be brief.\nuser:<image>")


def test_a_template_that_drops_turns_is_refused():
    template = Template(lambda turn: "" if turn["role"] == "assistant" else _said(turn))
    with pytest.raises(CaptionError, match=r"expected a chat template that keeps every turn.*leaves some out"):
        ChatLayout(template).lay((*small(), Message("assistant", ("A cat.",))))


def test_thoughts_are_turned_off_or_belong_to_the_answer():
    template = Template(_said, "{% if enable_thinking %}")
    assert ChatLayout(template).lay(small()).opened_thoughts == ""
    assert template.options["enable_thinking"] is False
    plain = Template(lambda turn: _said(turn) + "<think>\n")
    assert ChatLayout(plain).lay(small()[1:]).opened_thoughts == "<think>"
    assert "enable_thinking" not in plain.options


def test_nothing_is_said_on_the_screen(folders, capfd, caplog):
    model = LocalModel(folders["minicpmv4_7"], device="cpu")
    model.generate([small()], SHORT)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_weights_go_where_the_host_moves_them(folders):
    model = LocalModel(folders["qwen3_vl"], device=None)
    moved = model.module.to(torch.float64)  # of a host's moves, the one that shows on every machine
    (answer,) = model.generate([small()], SHORT)
    assert isinstance(answer, str) and model.module is moved
    assert next(moved.parameters()).dtype == torch.float64
    half = LocalModel(folders["qwen3_vl"], dtype=torch.bfloat16, device="cpu")
    numbers = sum(tensor.numel() for tensor in load_file(folders["qwen3_vl"] / "model.safetensors").values())
    assert half.folder.weight_bytes(torch.bfloat16) == 2 * numbers
    assert half.required_bytes > 2 * numbers
    assert next(half.module.parameters()).dtype == torch.bfloat16


def test_a_margin_is_for_keys_and_values_of_a_batch(models):
    config = models["qwen2_5_vl"].config  # 2 layers, 2 of 4 heads of 8 channels, MLP of 64, 32 channels
    one, two = (model_memory.margin_bytes(config, torch.float32, size) for size in (1, 2))
    assert two - one == 4096 * 4 * (2 * 2 * 2 * 8 + 2 * 64 + 4 * 32)


def test_identity_tells_models_apart(copy, captioning_models):
    identity = LocalModel(copy, device="cpu").identity
    assert identity.startswith("Qwen2_5_VLForConditionalGeneration model ")
    assert LocalModel(copy, device="cpu").identity == identity
    (copy / "README.md").write_text("words")
    assert LocalModel(copy, device="cpu").identity == identity
    captioning_models.edit_json(copy / "config.json", note="another")
    known = {identity, LocalModel(copy, device="cpu").identity}
    weights = load_file(copy / "model.safetensors")
    key = next(key for key in weights if "q_proj.weight" in key)

    def save(changes):
        save_file(weights | changes, copy / "model.safetensors", metadata={"format": "pt"})

    # Fine-tuned: as large as before, and one tensor is another.
    save({key: weights[key] + 0.01})
    known.add(LocalModel(copy, device="cpu").identity)
    save({"more": torch.zeros(1)})
    known.add(LocalModel(copy, device="cpu").identity)
    for name in ("chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (copy / name).write_text((copy / name).read_text() + " ")
        known.add(LocalModel(copy, device="cpu").identity)
    assert len(known) == 8


def test_identity_of_what_cannot_be_read(copy):
    model = LocalModel(copy, device="cpu")
    for damaged in (b"", b"\xff" * 8, (2**62).to_bytes(8, "little"), b"\2" + bytes(7) + b"[]"):
        (copy / "model.safetensors").write_bytes(damaged)
        assert LocalModel(copy, device="cpu").identity
    (copy / "model.safetensors").unlink()
    with pytest.raises(CaptionError, match=r"expected files that can be read in .*model, but No such file"):
        model.prepare()


def test_a_path_opens_a_local_model(folders):
    model = open_model(str(folders["smolvlm"]), device="cpu")
    assert isinstance(model, LocalModel) and model.device == torch.device("cpu")


def refused(folder, words, **options):
    """Refused at once, before weights are read."""
    with pytest.raises(CaptionError, match=words):
        LocalModel(folder, **({"device": "cpu"} | options))


def test_folders_without_a_model(copy, tmp_path, captioning_models):
    refused(tmp_path / "none", "expected the folder of a vision-language model at .*none, found none; nothing is down")
    refused(copy / "config.json", "expected the folder of a vision-language model")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no config.json; name the folder that config.json and")
    (tmp_path / "empty" / "model-Q4.gguf").touch()
    refused(tmp_path / "empty", "expected a transformers folder, found GGUF files .* serve the GGUF with llama.cpp")
    weights = copy / "model.safetensors"
    kept = weights.rename(copy / "kept")
    refused(copy, "expected model.safetensors in .*, found none; download the whole folder")
    (copy / "pytorch_model.bin").touch()
    refused(copy, "expected weights in safetensors in .*, found pickled ones only, which are never opened")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    refused(copy, "expected 2 weight files in .*, but one.safetensors and 1 more are missing")
    index.write_text("{")
    refused(copy, "expected a list of weight files in .*, but it is damaged")
    index.unlink()
    kept.rename(weights)
    captioning_models.edit_json(copy / "config.json", model_type=None)
    refused(copy, "its config.json names no model_type")
    (copy / "config.json").write_text("{")
    refused(copy, "expected JSON in .*config.json, but it is damaged")


def test_models_that_cannot_be_run(copy, tmp_path, captioning_models):
    text = captioning_models.build_text_model(tmp_path / "text")
    refused(text, r"expected a model that answers about pictures, but text \(qwen2\) is none")
    captioning_models.edit_json(copy / "config.json", model_type="minicpmv9")
    refused(copy, r"expected a transformers that knows minicpmv9, found \d.*pip install -U transformers")
    captioning_models.edit_json(copy / "config.json", auto_map={"AutoModel": "modeling.Model"})
    (copy / "modeling.py").write_text("raise SystemExit('the folder\\'s code ran')")
    refused(copy, r"model \(minicpmv9\) needs Python code from its folder, which is never run; choose MiniCPM-V 4.6")


def test_transformers_missing_old_or_at_odds_with_torchvision(copy, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "import_module", missing)
        refused(copy, "expected the package transformers to run .*No module named 'transformers'")
        refused(copy, r'run pip install "\.\[caption\]" in the folder of this pack, or use an endpoint')
    for error, words in (
        (AttributeError("CONFIG_MAPPING"), r"expected a transformers with CONFIG_MAPPING, found \d"),
        (RuntimeError("operator torchvision::nms does not exist"), "nms does not exist.*torchvision and torch fit"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(model_folder, "transformers_class", lambda name, error=error: (_ for _ in ()).throw(error))
            refused(copy, words)


def test_too_little_memory(copy, monkeypatch):
    monkeypatch.setattr(model_memory, "free_bytes", lambda device: 2**28)
    model = LocalModel(copy, device="cpu")
    with pytest.raises(CaptionError, match=r"expected 0.5 GB of free memory for model, found 0.2 GB; choose a smaller"):
        model.generate([small()], SHORT)
    with pytest.raises(CaptionError, match=r"expected 0.5 GB of free memory on mps for model, found 0.2 GB"):
        model_memory.refuse_too_little("model", 2**29, torch.device("mps"))
    # A host that moves the weights looks after its device; only the weights themselves lie in main memory.
    assert isinstance(LocalModel(copy, device=None).generate([small()], SHORT)[0], str)


def test_free_memory_is_what_the_system_has():
    free = model_memory.free_bytes(torch.device("cpu"))
    assert free is not None and 2**26 < free < 2**46


@pytest.mark.parametrize("also", (False, True))
def test_memory_that_runs_out_while_weights_are_moved(copy, monkeypatch, also):
    model, moves = LocalModel(copy, device="cpu"), []

    def move(device):
        moves.append(str(device))
        if len(moves) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory") if also else RuntimeError("device lost")

    monkeypatch.setattr(model.module, "to", move)
    words = r"expected 0.5 GB of free memory on cpu for model, but it ran out" if also else r"failed \(device lost\)"
    with pytest.raises(CaptionError, match=words):
        model.generate([small()], SHORT)
    assert moves == ["cpu", "cpu"], "a part of the weights was left there"


def test_devices_that_are_not_there(copy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused(copy, "expected a CUDA device for model, found none", device="cuda")
    refused(copy, "expected a torch and a machine with MPS for model, found none; choose cpu or auto", device="mps")
    for device in ("banana", "meta", "cuda:", "", "xpu"):
        words = f"expected auto, cpu, cuda, cuda:N or mps as the device for model, got '{device}'"
        refused(copy, words, device=device)
    assert LocalModel(copy).device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    refused(copy, "expected cuda:0 to cuda:1 for model, got cuda:2", device="cuda:2")
    chosen = [str(LocalModel(copy, device=name).device) for name in ("auto", "cuda", "cuda:1", "mps", "cpu")]
    assert chosen == ["cuda", "cuda", "cuda:1", "mps", "cpu"]


def broken(folder, words):
    """Refused at first use."""
    model = LocalModel(folder, device="cpu")
    with pytest.raises(CaptionError, match=words):
        model.generate([small()], SHORT)


def test_broken_weights(copy):
    weights = copy / "model.safetensors"
    state = load_file(weights)
    key = next(key for key in state if "q_proj" in key)
    save_file({name: value for name, value in state.items() if name != key}, weights, metadata={"format": "pt"})
    broken(copy, "expected a vision-language model in .*, but its weights lack .*q_proj.* and 0 more")
    weights.write_bytes(weights.read_bytes()[:2000])
    broken(copy, "expected a whole safetensors file, but model.safetensors is truncated")


def test_broken_processors(folders, copy, captioning_models):
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    broken(copy, "expected a processor for pictures and words in .*, but it has no chat template")
    (copy / "chat_template.jinja").write_text(template)
    (copy / "tokenizer.json").write_text("{}")
    broken(copy, "expected a processor for pictures and words in .*, but it cannot be loaded")
    shutil.copy(folders["qwen2_5_vl"] / "tokenizer.json", copy)
    (copy / "processor_config.json").unlink()
    broken(copy, "expected a processor for pictures and words in ")


def test_a_package_that_a_processor_wants(folders, monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    broken(folders["smolvlm"], "expected the packages that a processor .* needs, but Package `num2words` is required")
