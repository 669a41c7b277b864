"""Weight files: read safetensors safely, tell what they hold by keys and shapes, build the module, save whole.

Nothing here is ever unpickled. Sizes come from the tensors, never from a side file.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import CheckpointError, DiskError
from .model.autoencoder import AutoencoderParams, PatchAutoencoder
from .model.control import ControlParams, ControlStream
from .model.controlnet import ControlNet, ControlNetParams
from .model.family import FIT_FIELDS, FamilyParams
from .model.image_prompt import ImagePrompt, ImagePromptParams
from .model.layers import HEAD_DIM, TORCH, Factory, count_blocks
from .model.mmdit import MMDiT, MMDiTParams

Kind = Literal["mmdit", "control", "autoencoder"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)
ParamsT = TypeVar("ParamsT")

CHECKPOINT_PREFIX = "model.diffusion_model."  # where whole SD3 checkpoints keep the MMDiT
IMAGE_PROMPT_PREFIX = "image_prompt."  # where a control's file keeps the image prompt trained with it
_NAMES = {
    "mmdit": "an SD3-family transformer",
    "control": "EAM control weights",
    "image_prompt": "the weights of an EAM image prompt without its control",
    "autoencoder": "an EAM autoencoder",
}
# Key fragments of other model families, most telling first.
_OTHER_KINDS = (
    ("a LoRA", (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", "lora_unet_", "lora_te")),
    ("a Flux model", ("double_blocks.", "single_blocks.", "single_transformer_blocks.")),
    ("an SDXL model", ("conditioner.embedders.1.", "add_embedding.linear_1.", "label_emb.0.0.")),
    ("a Stable Diffusion 1 or 2 model", ("cond_stage_model.", "input_blocks.0.0.", "down_blocks.0.")),
    ("text encoder weights", ("text_model.encoder.", "encoder.block.0.layer.")),
    ("autoencoder weights of another family", ("decoder.up.", "decoder.mid.", "taesd_decoder.", "decoder.up_blocks.")),
)


def read_weights(path: str | Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """Read every tensor of a safetensors file.

    Args:
        path: the file.
        device: where the tensors go; "meta" gives shapes and dtypes without reading the data.

    Returns:
        Tensors by key.

    Raises:
        CheckpointError: missing, a folder, pickled, damaged, truncated or not safetensors.
    """
    with _opened(Path(path), "cpu" if device == "meta" else device) as file:
        if device == "meta":
            return {key: _meta(file.get_slice(key)) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the text metadata of a safetensors file ({} when it has none); raises like `read_weights`."""
    with _opened(Path(path), "cpu") as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    _refuse_unreadable(path)
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"expected a whole safetensors file, but {path.name} is damaged or truncated ({error}); download it again"
        ) from error


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def _meta(tensor_slice: Any) -> Tensor:
    dtype = _DTYPES.get(tensor_slice.get_dtype(), torch.float32)
    return torch.empty(tensor_slice.get_shape(), dtype=dtype, device="meta")


def _refuse_unreadable(path: Path) -> None:
    try:
        if not path.exists():
            raise CheckpointError(f"expected a weight file at {path}, found none; check the name and the folder")
        if path.is_dir():
            raise CheckpointError(f"expected a .safetensors file, got the folder {path}; name the file inside it")
        with path.open("rb") as file:
            start, size = file.read(16), path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"expected a readable weight file, got {path} ({error.strerror}); check it") from error
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return  # asked first: the header size of a good file may look like a pickle's first bytes
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise CheckpointError(
            f"expected a safetensors file, but {path.name} is a pickle, which can run code when opened; "
            "get the .safetensors version of these weights"
        )
    if start[:4] == b"GGUF":
        raise CheckpointError(
            f"expected a safetensors file, but {path.name} is GGUF; load it with a GGUF loader node and pass its MODEL"
        )
    raise CheckpointError(
        f"expected a whole safetensors file, but {path.name} is truncated or something else; download it again"
    )


def describe(state: Mapping[str, Tensor]) -> str:
    """Say in words what a state dict holds, for messages."""
    keys = {key.removeprefix(CHECKPOINT_PREFIX) for key in state}
    for kind in _MARKS:
        if _holds(keys, kind):
            return _NAMES[kind]
    for name, fragments in _OTHER_KINDS:
        if any(fragment in key for key in state for fragment in fragments):
            return name
    return f"something unknown ({len(state)} tensors, first key {next(iter(sorted(state)), 'none')!r})"


_MARKS: dict[str, tuple[set[str], ...]] = {
    "control": (
        {"lr_embedder.proj.weight", "control_blocks.0.img_out.weight"},
        {"lr_embedder.proj.weight", "controlnet_blocks.0.x_block.attn.qkv.weight", "zero_linears.0.weight"},
    ),
    "image_prompt": ({"image_prompt.projector.1.weight", "image_prompt.prompt_blocks.0.to_out_ip.weight"},),
    "autoencoder": ({"encoder.weight", "decoder.linear.weight", "decoder.leave.weight"},),
    "mmdit": ({"x_embedder.proj.weight", "joint_blocks.0.x_block.attn.qkv.weight", "final_layer.linear.weight"},),
}


def _holds(keys: Set[str], kind: str) -> bool:
    return any(marks <= keys for marks in _MARKS[kind])


def require(state: Mapping[str, Tensor], kind: Kind, source: str) -> dict[str, Tensor]:
    """Return the part of a state dict that holds the wanted kind: no checkpoint's prefix, no image prompt.

    Raises:
        CheckpointError: it holds something else; the message says what.
    """
    found = dict(state)
    if kind == "mmdit":
        inner = {
            key.removeprefix(CHECKPOINT_PREFIX): value
            for key, value in state.items()
            if key.startswith(CHECKPOINT_PREFIX)
        }
        found = inner or found
    if not _holds(found.keys(), kind):
        raise CheckpointError(
            f"expected {_NAMES[kind]}, but {source} holds {describe(found)}; choose a file of the right kind"
        )
    if kind == "control":
        return {key: value for key, value in found.items() if not key.startswith(IMAGE_PROMPT_PREFIX)}
    return found


def mmdit_params(state: Mapping[str, Tensor]) -> MMDiTParams:
    """Infer the architecture of an SD3-family transformer from its keys and shapes."""
    hidden_size, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    depth = count_blocks(state, "joint_blocks.")
    pos_embed = state.get("pos_embed")
    return MMDiTParams(
        depth=depth,
        hidden_size=hidden_size,
        in_channels=in_channels,
        patch_size=patch_size,
        context_size=state["context_embedder.weight"].shape[1],
        pooled_size=state["y_embedder.mlp.0.weight"].shape[1],
        pos_embed_max_size=192 if pos_embed is None else int(pos_embed.shape[1] ** 0.5),
        qk_norm="joint_blocks.0.x_block.attn.ln_q.weight" in state,
        dual_attention_blocks=tuple(i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in state),
    )


def control_params(state: Mapping[str, Tensor]) -> ControlParams | ControlNetParams:
    """Infer family and architecture of control weights from their keys and shapes."""
    family = ControlNetParams if "zero_linears.0.weight" in state else ControlParams
    return family.from_state_dict(state)


def build_mmdit(state: Mapping[str, Tensor], source: str, factory: Factory = TORCH) -> MMDiT:
    """Build the MMDiT that a state dict holds (whole checkpoint or bare), with its weights."""
    state = require(state, "mmdit", source)
    params = _infer(mmdit_params, state, source)
    return _fill(lambda where: MMDiT(params, where), state, source, factory)


def build_control(state: Mapping[str, Tensor], source: str, factory: Factory = TORCH) -> ControlStream | ControlNet:
    """Build the control that a state dict holds, of whichever family, with its weights."""
    state = require(state, "control", source)
    params = _infer(control_params, state, source)
    if isinstance(params, ControlNetParams):
        return _fill(lambda where: ControlNet(params, where), state, source, factory)
    return _fill(lambda where: ControlStream(params, where), state, source, factory)


def build_image_prompt(state: Mapping[str, Tensor], source: str, factory: Factory = TORCH) -> ImagePrompt | None:
    """Build the image prompt that a control's state dict holds beside the control; None where it holds none."""
    size = len(IMAGE_PROMPT_PREFIX)
    inner = {key[size:]: value for key, value in state.items() if key.startswith(IMAGE_PROMPT_PREFIX)}
    if not inner:
        return None
    params = _infer(ImagePromptParams.from_state_dict, inner, source)
    return _fill(lambda where: ImagePrompt(params, where), inner, source, factory)


def build_autoencoder(state: Mapping[str, Tensor], source: str) -> PatchAutoencoder:
    """Build the embedded default's autoencoder from its state dict."""
    state = require(state, "autoencoder", source)
    with torch.device("meta"):
        module = PatchAutoencoder(_infer(AutoencoderParams.from_state_dict, state, source))
    return _load(module, state, source, "cpu")


def _infer(read: Callable[[Mapping[str, Tensor]], ParamsT], state: Mapping[str, Tensor], source: str) -> ParamsT:
    try:
        return read(state)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"expected keys and shapes that tell the size of the network, but {source} has others "
            f"({type(error).__name__}: {error}); the file is incomplete or damaged"
        ) from error


def _fill(make: Callable[[Factory], ModuleT], state: Mapping[str, Tensor], source: str, factory: Factory) -> ModuleT:
    """Make a module without initialising it twice and give it the state's tensors."""
    dtype = factory.dtype or next((value.dtype for value in state.values() if value.is_floating_point()), None)
    module = make(replace(factory, dtype=dtype, device="meta"))
    return _load(module, state, source, factory.device or "cpu")


def _load(module: ModuleT, state: Mapping[str, Tensor], source: str, device: torch.device | str) -> ModuleT:
    """Give a module on the meta device the state's tensors; memory is taken only once all of them fit."""
    wanted = module.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(
            f"expected the keys of {type(module).__name__}, but {source} lacks {missing[:3] or 'none'} and adds "
            f"{extra[:3] or 'none'}; the file is incomplete or of a newer version"
        )
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"expected {key} of shape {tuple(value.shape)}, but {source} has {tuple(state[key].shape)}; "
                "the file is damaged or of another architecture"
            )
    module = module.to_empty(device=device)
    module.load_state_dict(dict(state))
    return module.eval()


def check_pair(base: MMDiTParams, control: FamilyParams | ImagePromptParams, source: str) -> None:
    """Refuse control or image prompt weights that were trained for a base of another size.

    Raises:
        CheckpointError: depth, width or norm differ.
    """
    fields = [field for field in FIT_FIELDS if hasattr(control, field)]
    wanted, got = ({field: getattr(params, field) for field in fields} for params in (base, control))
    if wanted != got:
        changed = ", ".join(
            f"{field} {got[field]} instead of {wanted[field]}" for field in fields if wanted[field] != got[field]
        )
        raise CheckpointError(
            f"expected control weights for this base (width {base.hidden_size} = {base.hidden_size // HEAD_DIM} heads, "
            f"{base.depth} blocks), but {source} was trained for another: {changed}; choose the base it was trained on"
        )


def save_weights(
    path: str | Path, state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None, **metadata: Any
) -> None:
    """Write a safetensors file that appears under its name only when it is whole.

    Args:
        path: target; its folder is made if missing.
        state: tensors by key.
        dtype: floating tensors are cast to it; unchanged when None.
        metadata: values stored as JSON under the file's text metadata.

    Raises:
        DiskError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    tensors = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for key, value in state.items()
    }
    # Dotted, so that no listing shows it; not the target's name, which may be as long as names can be.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            save_file(tensors, part, metadata={key: json.dumps(value) for key, value in metadata.items()})
            part.chmod(mode)  # safetensors makes files that only their owner can read
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"could not write {path} ({error}); free some space or choose another folder") from error
