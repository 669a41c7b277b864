"""What lies beside a control's weights: changes of the base's and the autoencoder's weights, and a fixed prompt.

Most families have nothing there. TSD-SR's folder holds transformer.safetensors, vae.safetensors and, once they are
converted, its prompt embeddings; pickles are never opened here.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .denoiser import Text
from .errors import CheckpointError
from .lora import LowRank, encoder_changes, transformer_changes
from .model.tsdsr import TSDSRParams, lora_modules, student_modules
from .weight_files import read_weights, save_weights

TRANSFORMER, ENCODER, EMBEDDINGS = "transformer.safetensors", "vae.safetensors", "embeddings.safetensors"
PROMPT_KEY, POOL_KEY = "prompt_embeds", "pool_embeds"
NUM_ENCODER_MODULES = 31


@dataclass(frozen=True, kw_only=True, eq=False)
class Companions:
    """What a control brings besides its own module.

    Attributes:
        transformer: changes of the base's weights.
        encoder: changes of the weights of the encoder of SD3's autoencoder.
        text: embedding of the prompt that stands for every prompt, where it was found.
        missing_text: what to do where it was not found.
    """

    transformer: tuple[LowRank, ...] = ()
    encoder: tuple[LowRank, ...] = ()
    text: Text | None = None
    missing_text: str = ""


def control_file(path: Path) -> Path:
    """Return the weight file that a folder of several names as the control; any other path as it is."""
    return path / TRANSFORMER if (path / TRANSFORMER).is_file() else path


def read_companions(path: Path, state: Mapping[str, Tensor], params: Any) -> Companions:
    """Read what belongs to a control's weights.

    Args:
        path: file of the control's weights.
        state: what it holds.
        params: the control's architecture.

    Raises:
        CheckpointError: something is missing or damaged.
    """
    if not isinstance(params, TSDSRParams):
        return Companions()
    _check_modules(lora_modules(state), student_modules(params.depth), path.name)
    beside = path.with_name(ENCODER)
    if not beside.is_file():
        raise CheckpointError(
            f"expected {ENCODER} beside {path.name}, found none in {path.parent}; "
            "put both files of the TSD-SR checkpoint into one folder"
        )
    encoder = encoder_changes(read_weights(beside), beside.name)
    if len(encoder) != NUM_ENCODER_MODULES:
        raise CheckpointError(
            f"expected changes of {NUM_ENCODER_MODULES} modules of the encoder in {beside}, got {len(encoder)}; "
            "download it again"
        )
    embeddings = path.with_name(EMBEDDINGS)
    return Companions(
        transformer=transformer_changes(state, path.name),
        encoder=encoder,
        text=read_embeddings(embeddings) if embeddings.is_file() else None,
        missing_text=f"expected {EMBEDDINGS} beside {path.name}, found none; make it with "
        f"python -m eam_core convert-embedding prompt_embeds.pt pool_embeds.pt {embeddings}",
    )


def read_embeddings(path: Path) -> Text:
    """Read the embedding of a prompt; a missing batch axis is added.

    Raises:
        CheckpointError: the file is damaged or holds something else.
    """
    state = read_weights(path)
    if state.keys() != {PROMPT_KEY, POOL_KEY}:
        raise CheckpointError(
            f"expected {PROMPT_KEY} and {POOL_KEY} in {path.name}, got {sorted(state)[:3]}; "
            "make it with python -m eam_core convert-embedding"
        )
    context, pooled = state[PROMPT_KEY].float(), state[POOL_KEY].float()
    context, pooled = context[None] if context.ndim == 2 else context, pooled[None] if pooled.ndim == 1 else pooled
    if context.ndim != 3 or pooled.ndim != 2 or len(context) != 1 or len(pooled) != 1:
        raise CheckpointError(
            f"expected one prompt of shapes [1, tokens, channels] and [1, channels] in {path.name}, got "
            f"{list(context.shape)} and {list(pooled.shape)}; make it with python -m eam_core convert-embedding"
        )
    return Text(context, pooled)


def save_embeddings(path: Path, text: Text) -> None:
    """Write what `read_embeddings` reads; raises DiskError."""
    save_weights(path, {PROMPT_KEY: text.context, POOL_KEY: text.pooled})


class FixedText:
    """One embedding for any prompt, for a model that was trained with one text (a `TextEncoder`)."""

    def __init__(self, get: Callable[[], Text], name: str):
        """Keep how to get the embedding, which happens once, and what the model is called."""
        self.get, self.name = get, name
        self.text: Text | None = None

    def encode(self, prompts: list[str]) -> list[Text]:
        """Return the embedding for each prompt, and warn when there was something to encode."""
        if any(prompts):
            warnings.warn(f"the prompt has no effect: {self.name} was trained with one text for all", stacklevel=2)
        self.text = self.text or self.get()
        return [self.text] * len(prompts)


def _check_modules(got: set[str], wanted: set[str], source: str) -> None:
    if got != wanted:
        missing, extra = sorted(wanted - got), sorted(got - wanted)
        raise CheckpointError(
            f"expected TSD-SR's LoRA of {len(wanted)} modules, but {source} lacks {missing[:2] or 'none'} and adds "
            f"{extra[:2] or 'none'}; it is damaged, or the LoRA of another model"
        )


def check_text(text: Text, context_size: int, pooled_size: int, source: str) -> None:
    """Refuse an embedding that a base cannot read.

    Raises:
        CheckpointError: its channels are others.
    """
    got = (text.context.shape[-1], text.pooled.shape[-1])
    if got != (context_size, pooled_size):
        raise CheckpointError(
            f"expected embeddings of {context_size} and {pooled_size} channels for this base, but {source} has "
            f"{got[0]} and {got[1]}; convert those that came with the checkpoint"
        )
