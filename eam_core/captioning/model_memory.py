"""How much memory a local vision-language model needs, and whether there is as much."""

import os
from typing import Any

import torch

from .messages import CaptionError

CONVERSATION_TOKENS = 4096  # seven pictures, the prompt's words and an answer take 2,000 to 4,000
OVERHEAD = 512 * 2**20  # vision tower at work, logits of a 250,000 word vocabulary, allocator


def margin_bytes(config: Any, dtype: torch.dtype, batch_size: int) -> int:
    """Return what generating takes beside the weights: keys and values, one layer's activations, and overhead.

    Args:
        config: transformers' config of the whole model.
        dtype: of weights and activations.
        batch_size: conversations at once, each counted with CONVERSATION_TOKENS.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 1)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    kept = 2 * text.num_hidden_layers * key_heads * head_size
    passing = 2 * getattr(text, "intermediate_size", 4 * text.hidden_size) + 4 * text.hidden_size
    return OVERHEAD + batch_size * CONVERSATION_TOKENS * (kept + passing) * dtype.itemsize


def refuse_too_little(name: str, needed: int, device: torch.device, has: int | None = None) -> None:
    """Check that a device has memory for a model.

    Args:
        name: of the model, for the message.
        needed: bytes.
        device: where.
        has: bytes that can be had there; what is free now by default.

    Raises:
        CaptionError: it has less than needed.
    """
    free = free_bytes(device) if has is None else has
    if free is not None and free < needed:
        where = "memory" if device.type == "cpu" else f"memory on {device}"
        raise CaptionError(
            f"expected {needed / 2**30:.1f} GB of free {where} for {name}, found {free / 2**30:.1f} GB; "
            "choose a smaller model, close other programs, or use an endpoint"
        )


def out_of_memory(name: str, needed: int, device: torch.device) -> CaptionError:
    """Return what to say when a device's memory has run out after all."""
    return CaptionError(
        f"expected {needed / 2**30:.1f} GB of free memory on {device} for {name}, but it ran out; "
        "choose a smaller model or smaller pictures, or use an endpoint"
    )


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory a device has left; None where nobody can tell."""
    if device.type == "cuda":
        kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept_by_torch
    if device.type != "cpu":
        return None
    try:
        import psutil

        return psutil.virtual_memory().available
    except ImportError:
        pass
    try:
        # All there is: what the system calls free leaves out what it would give back, and would refuse too much.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
