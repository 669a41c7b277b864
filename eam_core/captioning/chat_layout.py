"""Conversations in a model's own layout: its chat template for the words, its image processor for the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from .messages import CaptionError, Conversation, Message

TILES_PER_SIDE = 2


@dataclass(frozen=True)
class Laid:
    """Hold a conversation as its model reads it: words with one placeholder per picture, and the pictures."""

    prompt: str
    pictures: tuple[Image.Image, ...]

    @property
    def opened_thoughts(self) -> str:
        """Return the tag of thoughts that the template opens for the model, which belongs to its answer."""
        return "<think>" if self.prompt.rstrip().endswith("<think>") else ""


class ChatLayout:
    """Turn conversations into what a model's `generate` takes, with the processor of its folder."""

    def __init__(self, processor: Any) -> None:
        """Keep the processor and have it pad on the left, where padding does not come between prompt and answer."""
        self.processor = processor
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        # Templates of Qwen3.5 kind (MiniCPM-V 4.6) let the model think first unless told; a caption needs none of it.
        self.options = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        self.special = sorted(_special_tokens(tokenizer), key=len, reverse=True)

    def lay(self, conversation: Conversation) -> Laid:
        """Apply the chat template.

        One way serves all models: the template is applied to words and image marks alone, and the processor gets the
        pictures beside the finished text. A template that refuses a system turn, or leaves it out, gets its words at
        the start of the first user turn.

        Raises:
            CaptionError: the template does not take the conversation.
        """
        clean = tuple(Message(each.role, tuple(self._plain(part) for part in each.parts)) for each in conversation)
        failure: Exception | None = None
        for turns in (clean, _without_system(clean)):
            try:
                prompt = self.processor.apply_chat_template(
                    _as_fields(turns), add_generation_prompt=True, tokenize=False, **self.options
                )
            # What a template raises is up to it; jinja's own errors are no dependency of ours.
            except Exception as error:
                failure = error
                continue
            if all(part.strip() in prompt for part in _parts(turns, str)):
                return Laid(prompt, tuple(_to_pil(part) for part in _parts(turns, Tensor)))
        raise CaptionError(
            "expected a chat template that keeps every turn of a conversation, but this model's "
            f"{f'fails ({failure})' if failure else 'leaves some out'}; choose another model, or mode da"
        ) from failure

    def inputs(self, laid: Sequence[Laid]) -> dict[str, Tensor]:
        """Return tensors for `generate`: input_ids and attention_mask [B,T], padded on the left, and pixels.

        Raises:
            CaptionError: the processor does not take them.
        """
        begin = self.processor.tokenizer.bos_token
        begun = begin is not None and all(each.prompt.startswith(begin) for each in laid)
        options: dict[str, Any] = {"add_special_tokens": False} if begun else {}
        if any(each.pictures for each in laid):
            options |= {"images": [list(each.pictures) for each in laid], "images_kwargs": self._picture_options()}
        prompts = [each.prompt for each in laid]
        try:
            return dict(self.processor(text=prompts, padding=True, return_tensors="pt", **options))
        # Transformers' processors raise ValueError, TypeError, RuntimeError... for what they cannot take.
        except Exception as error:
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise CaptionError(
                f"expected pictures and words that the model's processor takes, but it refused them ({words}); "
                "check the picture's shape, or choose another model"
            ) from error

    def decode(self, tokens: Tensor) -> str:
        """Return the words of an answer's tokens [T]."""
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()

    def _picture_options(self) -> dict[str, Any]:
        """Bound the tokens of a picture where a processor would enlarge it first.

        SmolVLM and Idefics3 enlarge every picture to four tiles a side and add the whole: at 64 to 81 tokens a tile,
        seven pictures are 7 x 17 tiles, 7,600 to 9,600 tokens, and they were made for 8,192. With two tiles a side
        they are 7 x 5 tiles, 2,835 tokens at most, and still show 768 to 1024 pixels, about all that the prompt sends.
        The others need no bound, as the prompt sends 1024 pixels at most: MiniCPM-V cuts that into six slices at most
        (about 450 tokens with the whole), Qwen2.5-VL makes 1,369 tokens of it and Qwen3-VL 1,024; their examples of
        384 pixels are about 70, 130 and 100 tokens each.
        """
        processor = self.processor.image_processor
        tile = getattr(processor, "max_image_size", None)
        if not tile or not getattr(processor, "do_image_splitting", False):
            return {}
        return {"size": {"longest_edge": min(processor.size["longest_edge"], TILES_PER_SIDE * tile["longest_edge"])}}

    def _plain(self, part: str | Tensor) -> str | Tensor:
        """Take tokens with a meaning to the model ("<image>", "<|im_end|>") out of what is only words."""
        before = None
        # What is left of two tokens, one in the other, is a token again.
        while isinstance(part, str) and part != before:
            before = part
            for token in self.special:
                part = part.replace(token, "")
        return part


def _as_fields(conversation: Conversation) -> list[dict[str, Any]]:
    """Return turns as transformers' chat templates read them."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts
            ],
        }
        for turn in conversation
    ]


def _without_system(conversation: Conversation) -> Conversation:
    """Move what the system turns say to the start of the first user turn."""
    said = tuple(part for turn in conversation if turn.role == "system" for part in turn.parts)
    turns = [turn for turn in conversation if turn.role != "system"]
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None or not said:
        return conversation
    turns[first] = Message("user", (*said, *turns[first].parts))
    return tuple(turns)


def _parts(conversation: Conversation, kind: type) -> list[Any]:
    return [part for turn in conversation for part in turn.parts if isinstance(part, kind)]


def _to_pil(picture: Tensor) -> Image.Image:
    pixels = picture.detach().float().mul(255).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().contiguous().numpy())


def _special_tokens(tokenizer: Any) -> set[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {str(token) for token in added if getattr(token, "special", False)} | set(tokenizer.all_special_tokens)
