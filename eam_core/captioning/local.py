"""A vision-language model in a local folder, run by transformers' own image-text-to-text classes."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..device import usual_dtype
from .chat_layout import ChatLayout, Laid
from .messages import CaptionError, Conversation, GenerateConfig, OnToken
from .model_device import choose_device, usual_device
from .model_folder import load, model_config, open_folder, package_class, refuse_oversized, transformers
from .model_memory import margin_bytes, out_of_memory, refuse_too_little
from .model_watch import TokenCount, Watch, Workshop
from .seeded_sampling import SeededSampling


class LocalModel:
    """Answer conversations with a model from a folder: MiniCPM-V 4.6, Qwen2.5-VL, Qwen3-VL, SmolVLM and their like.

    The folder is checked at once; processor and weights are read at first use and stay. Nothing is downloaded,
    unpickled or run from the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str | torch.device | None = "auto",
        *,
        dtype: torch.dtype | None = None,
        batch_size: int = 1,
    ) -> None:
        """Check a folder.

        Args:
            folder: of a transformers model in safetensors.
            device: "auto" takes CUDA or MPS where there is one; else "cpu", "cuda", "cuda:N" or "mps". None leaves the
                weights where the host moves `module`, and what free memory that device has to the host.
            dtype: of the weights; bfloat16 on GPUs and float32 on the CPU by default.
            batch_size: most conversations at once.

        Raises:
            CaptionError: the folder holds no model that can be used here, or there is no such device.
        """
        if batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
        self.folder = open_folder(Path(folder))
        self.config = model_config(self.folder)
        self.device = None if device is None else choose_device(device, self.folder.path.name)
        home = self.device or usual_device()
        self.dtype = dtype or usual_dtype(home)
        self.batch_size = batch_size
        self._identity = ""
        self._workshop = Workshop()
        self._module: nn.Module | None = None
        self._chat: ChatLayout | None = None

    def prepare(self, on_token: OnToken | None = None) -> None:
        """Read what `identity` needs; see `Generator`."""
        if not self._identity:
            self._identity = self._workshop.do(lambda watch: self.folder.identify(watch.check), on_token, 0)

    @property
    def identity(self) -> str:
        """Return class, folder name and a fingerprint of settings and weights.

        Raises:
            CaptionError: a file cannot be read.
        """
        self.prepare()
        return self._identity

    @property
    def required_bytes(self) -> int:
        """Return the bytes of the weights in `dtype`, with keys, values and activations of a whole batch."""
        try:
            margin = margin_bytes(self.config, self.dtype, self.batch_size)
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:  # transformers looks at some only
            raise CaptionError(
                f"expected the sizes of a model in {self.folder.path / 'config.json'}, got others ({error}); "
                "download it again"
            ) from error
        return self.folder.weight_bytes(self.dtype) + margin

    @property
    def module(self) -> nn.Module:
        """Return the model, read onto the CPU at first use and there until someone moves it.

        Raises:
            CaptionError: it cannot be loaded.
        """
        return self.read()

    def read(self, on_token: OnToken | None = None, max_tokens: int = 0) -> nn.Module:
        """Return `module`, and call on_token as (0, max_tokens) while it is read; it may raise to stop.

        Raises:
            CaptionError: it cannot be loaded.
        """
        return self._workshop.do(self._read, on_token, max_tokens)

    @property
    def chat(self) -> ChatLayout:
        """Return the processor in the layout of conversations.

        Raises:
            CaptionError: it cannot be loaded.
        """
        if self._chat is None:
            self._chat = self._load_chat()
        return self._chat

    def generate(
        self, conversations: Sequence[Conversation], config: GenerateConfig, on_token: OnToken | None = None
    ) -> list[str | CaptionError]:
        """Answer each conversation; see `Generator`.

        Raises:
            CaptionError: the model as such cannot be used.
        """

        def work(watch: Watch) -> list[str | CaptionError]:
            answers: list[str | CaptionError] = []
            with _quiet():
                module = self._placed(watch)
                for start in range(0, len(conversations), self.batch_size):
                    answers += self._answer(module, conversations[start : start + self.batch_size], config, watch)
            return answers

        return self._workshop.do(work, on_token, config.max_tokens)

    def _answer(
        self, module: nn.Module, conversations: Sequence[Conversation], config: GenerateConfig, watch: Watch
    ) -> list[str | CaptionError]:
        """Answer at most `batch_size` conversations, those together that can be asked."""
        answers: dict[int, str | CaptionError] = {}
        ready: dict[int, tuple[Laid, dict[str, Tensor]]] = {}
        for i, conversation in enumerate(conversations):
            watch.check()
            try:
                ready[i] = self._fitting(conversation, config.max_tokens)
            except CaptionError as error:
                answers[i] = error
        if ready:
            laid, inputs = zip(*ready.values())
            # Alone it is padded as it is: it need not go through the processor again.
            together = inputs[0] if len(inputs) == 1 else self.chat.inputs(laid)
            texts = self._generate(module, together, config, watch)
            answers |= {i: each.opened_thoughts + text for i, each, text in zip(ready, laid, texts)}
        return [answers[i] for i in range(len(conversations))]

    def _fitting(self, conversation: Conversation, max_tokens: int) -> tuple[Laid, dict[str, Tensor]]:
        """Lay a conversation out, and see that it and its answer fit the model's context; with its inputs."""
        laid = self.chat.lay(conversation)
        most = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        inputs = self.chat.inputs([laid])
        tokens = inputs["input_ids"].shape[1]
        if most is not None and tokens + max_tokens > most:
            raise CaptionError(
                f"expected a conversation and answer of at most {most} tokens for {self.folder.path.name}, got "
                f"{tokens} and {max_tokens}; use mode da, fewer tokens, or a model with a longer context"
            )
        return laid, inputs

    def _generate(
        self, module: Any, inputs: dict[str, Tensor], config: GenerateConfig, watch: Watch
    ) -> list[str | CaptionError]:
        length = inputs["input_ids"].shape[1]
        home = next(module.parameters())
        inputs = {
            name: value.to(home.device, home.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        count = TokenCount(watch, length)
        try:
            with torch.no_grad(), _last_logits_only(module), watch.at_layers(module):
                tokens = module.generate(
                    **inputs,
                    max_new_tokens=config.max_tokens,
                    do_sample=False,  # what `SeededSampling` leaves is drawn already
                    logits_processor=package_class("LogitsProcessorList")(
                        [SeededSampling(config.seed, config.temperature)]
                    ),
                    stopping_criteria=package_class("StoppingCriteriaList")([count]),
                )
        except CaptionError:
            raise
        except Exception as error:
            raise self._failure(error, home.device) from error
        return [self.chat.decode(row[length:]) for row in tokens]

    def _failure(self, error: Exception, device: torch.device) -> CaptionError:
        name = self.folder.path.name
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return out_of_memory(name, self.required_bytes, device)
        words = " ".join(str(error).split())[:200] or type(error).__name__
        return CaptionError(
            f"expected an answer from {name}, but it failed ({words}); download it again or use another"
        )

    def _placed(self, watch: Watch) -> nn.Module:
        if self.device is None:
            return self._read(watch)
        if self._module is None and self.device.type != "cpu":
            refuse_too_little(self.folder.path.name, self.required_bytes, self.device)
        module = self._read(watch)
        try:
            with watch.at_calls():
                return module.to(self.device)
        except Exception as error:
            module.to("cpu")  # what had found room would only be in the way
            raise self._failure(error, self.device) from error

    def _read(self, watch: Watch) -> nn.Module:
        if self._module is None:
            with watch.at_calls():
                module = self._load_module()
            watch.check()  # transformers swallows some errors, and this must not pass for a whole model
            self._module = module
        return self._module

    def _load_module(self) -> nn.Module:
        on_cpu = self.device is not None and self.device.type == "cpu"
        needed = self.required_bytes if on_cpu else self.folder.weight_bytes(self.dtype)
        refuse_too_little(self.folder.path.name, needed, torch.device("cpu"))
        kind, what = package_class("AutoModelForImageTextToText"), "a vision-language model"
        with _quiet():
            refuse_oversized(kind, self.folder, self.config, what)
        # dtype is spelt torch_dtype by transformers 4, which 5 still takes.
        options = {"use_safetensors": True, "torch_dtype": self.dtype, "output_loading_info": True}
        with _quiet():
            module, report = load(kind, self.folder, what, **options)
            # Transformers makes up what the files lack.
            missing = sorted(report["missing_keys"])
            if missing:
                raise CaptionError(
                    f"expected {what} in {self.folder.path}, but its weights lack {missing[0]} and {len(missing) - 1} "
                    "more; download the folder again"
                )
            module.generation_config = self._generation_config(module)
        return module.eval().requires_grad_(False)

    def _generation_config(self, module: Any) -> Any:
        """Return where answers end, and nothing else of the folder's settings: they would change what is drawn."""
        given, tokenizer = module.generation_config, self.chat.processor.tokenizer
        ends = given.eos_token_id if isinstance(given.eos_token_id, list) else [given.eos_token_id]
        ends = {end for end in (*ends, tokenizer.eos_token_id) if end is not None}
        return package_class("GenerationConfig")(eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)

    def _load_chat(self) -> ChatLayout:
        with _quiet():
            processor = load(package_class("AutoProcessor"), self.folder, "a processor for pictures and words")
        template = getattr(processor, "chat_template", None)
        if not hasattr(processor, "image_processor") or not template:
            lacking = "chat template" if hasattr(processor, "image_processor") else "settings for pictures"
            raise CaptionError(
                f"expected a processor for pictures and words in {self.folder.path}, but it has no {lacking}; "
                "download the whole folder, of a model made for conversations"
            )
        return ChatLayout(processor)


@contextmanager
def _last_logits_only(module: Any) -> Iterator[None]:
    """Have logits computed for the last token alone.

    Some models compute them for the whole prompt: 4,000 tokens of MiniCPM-V 4.6 would be 4 GB in float32.
    """

    def last(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][:, -1:], *arguments[1:])

    head = module.get_output_embeddings()
    hook = head.register_forward_pre_hook(last) if head is not None else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' advice and progress bars off the screen."""
    log = transformers().logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()
