"""What the tests of local vision-language models share: the kinds, pictures, and short conversations."""

import pytest
import torch

from eam_core.captioning.local import LocalModel
from eam_core.captioning.messages import CaptionError, GenerateConfig, Message

KINDS = ("minicpmv4_6", "minicpmv4_7", "qwen2_5_vl", "qwen3_vl", "smolvlm")
SHORT = GenerateConfig(max_tokens=16, seed=3, temperature=1.0)


def picture(height=320, width=480, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def small(text="What is it?", number=1, seed=0):
    """A conversation with small pictures, and few words: fast."""
    pictures = [picture(40 + 8 * i, 64, seed + i) for i in range(number)]
    return (Message("system", ("Be brief.",)), Message("user", (*pictures, text)))


def refused(folder, words, **options):
    """Refused at once, before weights are read."""
    with pytest.raises(CaptionError, match=words):
        LocalModel(folder, **({"device": "cpu"} | options))
