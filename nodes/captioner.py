"""Open what EAM_LoadCaptioner names: a folder below ComfyUI's models, an endpoint, or a CLIP that writes text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..eam_core.captioning.messages import CaptionError, Conversation, GenerateConfig, Generator, OnToken
from ..eam_core.captioning.model_memory import out_of_memory, refuse_too_little
from .host_captioner import HostModel
from .patcher import managed

if TYPE_CHECKING:
    from ..eam_core.captioning.local import LocalModel

_KINDS = ("LLM", "llm", "text_encoders")  # of folder_paths and extra_model_paths.yaml, where such models are kept


def open_captioner(source: str, name: str, clip: Any = None) -> Generator:
    """Open a vision-language model.

    Args:
        source: a folder below ComfyUI's models, or the http(s) address of an OpenAI-compatible endpoint.
        name: which of the endpoint's models to ask; its first when empty.
        clip: a CLIP that writes text; used instead of the source.

    Raises:
        CaptionError: there is no usable model.
    """
    if clip is not None:
        return HostModel(clip)
    source = source.strip()
    if source.startswith(("http://", "https://")):
        from ..eam_core.captioning.endpoint import Endpoint

        return Endpoint(source, model=name.strip())
    from ..eam_core.captioning.local import LocalModel

    return ManagedModel(LocalModel(model_folder(source), device=None, dtype=_dtype()))


def model_folder(source: str) -> Path:
    """Return the folder that a workflow names; never one outside of ComfyUI's folders of models.

    Links within those folders are followed: whoever owns the machine has put them there, not the workflow.

    Raises:
        CaptionError: it lies elsewhere, or there is none.
    """
    given = Path(source.replace("\\", "/"))
    candidates = [] if ".." in given.parts or not given.parts else list(_candidates(given))
    found = next((path for path in candidates if _is_folder(path)), None)
    if found is None:
        looked = " or ".join(dict.fromkeys(map(str, candidates)))
        todo = f"put the model at {looked}" if looked else "folders elsewhere cannot be named"
        got = f"{source!r}; {todo}" if source else "nothing; name one, or type a caption"
        raise CaptionError(
            "expected a folder below ComfyUI's models folder, such as LLM/MiniCPM-V-4.6, or an http(s) address, "
            f"got {got}"
        )
    return found


def _candidates(given: Path) -> Iterator[Path]:
    """Yield where it may be: below models itself or a folder of a kind, with or without the kind's name."""
    roots = [(Path(folder_paths.models_dir), given)]
    for kind in _KINDS:
        if kind in folder_paths.folder_names_and_paths:
            inner = Path(*given.parts[1:]) if given.parts[0] == kind else given
            roots += [(Path(root), inner) for root in folder_paths.get_folder_paths(kind)]
    for root, inner in roots:
        path = root / inner  # an absolute one replaces the root
        if path.is_relative_to(root) or path.is_relative_to(root.resolve()):
            yield path


class ManagedModel:
    """A local model under ComfyUI's memory management: its weights are read when it is first asked."""

    def __init__(self, model: "LocalModel"):
        self.model = model
        self.patcher: ModelPatcher | None = None

    def prepare(self, on_token: OnToken | None = None) -> None:
        """See `Generator`."""
        self.model.prepare(on_token)

    @property
    def identity(self) -> str:
        """Return what tells this model from others, for the cache."""
        return self.model.identity

    def generate(
        self, conversations: Sequence[Conversation], config: GenerateConfig, on_token: OnToken | None = None
    ) -> list[str | CaptionError]:
        """Answer each conversation, or say what kept the model from answering that one.

        Raises:
            CaptionError: the model cannot be used.
        """
        if self.patcher is None:
            self.patcher = self._managed(on_token, config.max_tokens)
        self._load(self.patcher)
        return self.model.generate(conversations, config, on_token)

    def _managed(self, on_token: OnToken | None, max_tokens: int) -> ModelPatcher:
        management = comfy.model_management
        device = management.text_encoder_device()
        # ComfyUI unloads its other models for this one, so what counts is all that the device has.
        if not management.is_device_cpu(device):
            has = management.get_total_memory(device)
            refuse_too_little(self.model.folder.path.name, self.model.required_bytes, device, has=has)
        module = self.model.read(on_token, max_tokens)
        # In a list, as transformers' modules do not let ModelPatcher set attributes such as `device`.
        return managed(nn.ModuleList([module]), device, management.text_encoder_offload_device())

    def _load(self, patcher: ModelPatcher) -> None:
        needed = self.model.required_bytes
        besides = max(0, needed - patcher.model_size())
        try:
            # Whole: only ComfyUI's own layers can work while a part of their weights is elsewhere.
            comfy.model_management.load_models_gpu([patcher], memory_required=besides, force_full_load=True)
        except torch.cuda.OutOfMemoryError as error:
            patcher.detach()  # what had found room would only be in the way
            raise out_of_memory(self.model.folder.path.name, needed, patcher.load_device) from error


def _dtype() -> torch.dtype:
    """Return what weights are kept in: half precision where the device of text encoders is fast in it."""
    device = comfy.model_management.text_encoder_device()
    if comfy.model_management.is_device_cpu(device):
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float16


def _is_folder(path: Path) -> bool:
    """Tell whether a folder is there; a name that no disk holds, too long or with NUL, is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
