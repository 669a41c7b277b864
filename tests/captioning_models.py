"""Stand-ins for vision-language models: transformers' real classes and processors, small, with random weights.

Their tokenizers, templates and processors have the real models' formats, so that prompts and pictures take the real
way; what they answer is noise.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_LIBRARIES: list[torch.library.Library] = []
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
_CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TEMPLATE = _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
MINICPM_TEMPLATE = _CHATML.replace("IMAGE", "<|image_pad|>").replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}",
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def make_torchvision_importable() -> None:
    """Declare what torchvision registers shapes for, where its compiled part does not fit the installed torch."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # the declarations end with it


def is_known(kind: str) -> bool:
    """Tell whether the installed transformers has a kind; the newest ones came after what pyproject.toml asks for."""
    import transformers as tf

    return not kind.startswith("minicpm") or hasattr(tf, f"MiniCPMV4_{kind[-1]}Config")


def build_model(kind: str, folder: Path) -> Path:
    """Write a stand-in into a folder as a real model's download looks.

    Args:
        kind: one of KINDS.
        folder: made if it is missing.

    Returns:
        The folder.
    """
    make_torchvision_importable()
    torch.manual_seed(0)
    model, processor = KINDS[kind]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Wide enough that answers depend on what is read, and narrow enough that seeds change them.
                parameter.normal_(std=1.0 if "lm_head" in name else 0.6)
    # Settings of their own, as real folders have them; none of them may reach an answer.
    model.generation_config.update(do_sample=True, temperature=1.9, top_k=3, repetition_penalty=5.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build_slow_model(folder: Path) -> Path:
    """Write a stand-in in Qwen2.5-VL's layout that needs many seconds for a prompt: 64 layers, 110 MB."""
    with_text = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 64}
    make_torchvision_importable()
    torch.manual_seed(0)
    model, processor = _qwen2_5_vl(**with_text)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build_text_model(folder: Path) -> Path:
    """Write a language model that sees no pictures."""
    import transformers

    config = transformers.Qwen2Config(vocab_size=64, **_TEXT)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def edit_json(file: Path, **fields: Any) -> None:
    """Change fields of a JSON file; None takes one out."""
    known = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in known.items() if value is not None}))


def _tokenizer(end: str, begin: str | None, pad: str, special: list[str], **named: str) -> Any:
    """Train a small tokenizer of the byte-level kind on a few words, with the special tokens of a real one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = ["Describe this picture as instructed. A photo of a cat on a table, in the light of the sky."] * 4
    core.train_from_iterator(words, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    tokens = dict.fromkeys([pad, end, *([begin] if begin else []), *special, *named.values()])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=end,
        bos_token=begin,
        pad_token=pad,
        extra_special_tokens=named,
        model_input_names=["input_ids", "attention_mask"],
    )


def _qwen_tokenizer(**named: str) -> Any:
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>"]
    pads = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    return _tokenizer("<|im_end|>", None, "<|endoftext|>", marks, **pads, **named)


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _text_ids(tokenizer: Any) -> dict[str, int]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **ids}


def _qwen2_5_vl(**text: Any) -> tuple[Any, Any]:
    import transformers as tf

    tokenizer = _qwen_tokenizer()
    text = _TEXT | text | _text_ids(tokenizer)
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half // 4, half // 4, half // 2]
    rope = {"type": "default", "rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}
    text |= {"rope_parameters": rope, "rope_scaling": rope}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision["out_hidden_size"] = text["hidden_size"]
    vision |= {"patch_size": 14, "fullatt_block_indexes": [1]}
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
    processor = tf.Qwen2_5_VLProcessor(
        tf.Qwen2VLImageProcessor(), tokenizer, tf.Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl() -> tuple[Any, Any]:
    import transformers as tf

    tokenizer = _qwen_tokenizer()
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
    text = _TEXT | _text_ids(tokenizer) | {"rope_parameters": rope, "rope_scaling": rope, "head_dim": 8}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = tf.Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
    pictures = tf.Qwen2VLImageProcessor(
        patch_size=16,
        size={"shortest_edge": 65536, "longest_edge": 16777216},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = tf.Qwen3VLProcessor(pictures, tokenizer, tf.Qwen3VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    return tf.Qwen3VLForConditionalGeneration(config), processor


def _minicpm(version: str) -> tuple[Any, Any]:
    import transformers as tf

    marks = {"image_start": "<image>", "image_end": "</image>", "slice_start": "<slice>", "slice_end": "</slice>"}
    marks |= {"image_id_start": "<image_id>", "image_id_end": "</image_id>"}
    tokenizer = _qwen_tokenizer(**{f"{name}_token": token for name, token in marks.items()})
    linear = {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")}
    linear |= {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "layer_types": ["linear_attention", "full_attention"],
    }
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
    text = (
        _TEXT | _text_ids(tokenizer) | linear | {"model_type": "qwen3_5_text", "head_dim": 16, "rope_parameters": rope}
    )
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"patch_size": 14, "image_size": 448}
    ids = {name: value for name, value in _qwen_ids(tokenizer).items() if not name.startswith("vision")}
    if version == "7":
        starts = ("image_start", "image_end", "slice_start", "slice_end")
        ids |= {f"{name}_id": tokenizer.convert_tokens_to_ids(marks[name]) for name in starts}
        ids["newline_id"] = tokenizer("\n").input_ids[0]
    config = getattr(tf, f"MiniCPMV4_{version}Config")(text_config=text, vision_config=vision, insert_layer_id=1, **ids)
    processor = getattr(tf, f"MiniCPMV4_{version}Processor")(
        tf.MiniCPMV4_6ImageProcessor(), tf.MiniCPMV4_6VideoProcessor(), tokenizer, chat_template=MINICPM_TEMPLATE
    )
    return getattr(tf, f"MiniCPMV4_{version}ForConditionalGeneration")(config), processor


def _smolvlm() -> tuple[Any, Any]:
    import transformers as tf
    from transformers.models.smolvlm import processing_smolvlm

    # The processor wants this package for videos only, and refuses to start without it.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ["<fake_token_around_image>", "<image>", "<global-img>", *rows]
    tokenizer = _tokenizer("<end_of_utterance>", "<|im_start|>", "<|endoftext|>", marks)
    text = {"model_type": "llama"} | _TEXT | _text_ids(tokenizer)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 8}
    config = tf.SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    sizes = {"size": {"longest_edge": 4 * 64}, "max_image_size": {"longest_edge": 64}}
    processor = tf.SmolVLMProcessor(
        tf.SmolVLMImageProcessor(**sizes),
        tokenizer,
        tf.SmolVLMVideoProcessor(**sizes),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    return tf.SmolVLMForConditionalGeneration(config), processor


KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "minicpmv4_6": lambda: _minicpm("6"),
    "minicpmv4_7": lambda: _minicpm("7"),
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
}
