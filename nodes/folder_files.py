"""What the folder nodes make of ComfyUI's own: its folders, its pictures, and the metadata that core writes."""

import json
import os
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..eam_core.errors import printable
from ..eam_core.folder_batch import BatchSettings
from ..eam_core.folder_names import Saver
from ..eam_core.folder_places import ALLOWED_VARIABLE, Root, allowed_folders, resolve_folder
from ..eam_core.images import Picture
from .types import to_core, to_host

# EXIF's Model, and Make with the tags before it: where core's WebP keeps the prompt, the workflow and the rest.
_PROMPT_TAG, _FIRST_TAG = 0x0110, 0x010F
# Of one JPEG segment, less its marker.
_JPEG_EXIF_BYTES = 65_500


def batch_settings(folder: str, output_folder: str, savers: tuple[Saver, ...], **settings: Any) -> BatchSettings:
    """Find the folders that a node names inside ComfyUI's own.

    Args:
        folder: of the pictures, relative to the input folder.
        output_folder: of the results, relative to the output folder.
        savers: what is saved of each picture.
        settings: pattern, subfolders and overwrite.

    Raises:
        FolderError: a folder may not be used or is not there.
    """
    inputs = Root(path=Path(folder_paths.get_input_directory()), name="ComfyUI's input folder", widget="folder")
    outputs = Root(
        path=Path(folder_paths.get_output_directory()), name="ComfyUI's output folder", widget="output_folder"
    )
    allowed = allowed_folders(os.environ.get(ALLOWED_VARIABLE))
    return BatchSettings(
        folder=resolve_folder(folder, inputs, allowed),
        output=resolve_folder(output_folder, outputs, allowed),
        source=folder.strip() or "input",
        savers=savers,
        readable=(Path(os.path.realpath(inputs.path)), *allowed),
        **settings,
    )


def to_image(picture: Picture) -> tuple[Tensor, Tensor]:
    """Return IMAGE [1, H, W, 3] and MASK, which is 1 where transparent, as core's LoadImage gives them."""
    mask = torch.zeros(1, 64, 64) if picture.alpha is None else 1 - picture.alpha[:, 0]
    return to_host(picture.rgb), mask


def to_pictures(image: Tensor, icc_profile: bytes | None) -> list[Picture]:
    """Split an IMAGE [B, H, W, 3 or 4] into pictures; a fourth channel is transparency."""
    alphas = image[..., 3:].movedim(-1, 1).float() if image.shape[-1] == 4 else None
    return [
        Picture(rgb=rgb[None], alpha=None if alphas is None else alphas[number : number + 1], icc_profile=icc_profile)
        for number, rgb in enumerate(to_core(image))
    ]


def encoder_options(ending: str, quality: int, hidden: io.HiddenHolder, name: str) -> tuple[dict[str, Any], list[str]]:
    """Choose quality and metadata for a file: prompt and workflow as core writes them, unless ComfyUI is told not to.

    Args:
        ending: of the file's name, such as ".png".
        quality: of JPEG and WebP, 1 to 100.
        hidden: of the node that saves; holds the prompt and what the browser sent along.
        name: of the picture, noted as eam_folder.

    Returns:
        Options of Pillow's encoder, and which metadata the format has no room for.
    """
    png = ending == ".png"
    options = {"compress_level": 4} if png else {"quality": quality}
    if args.disable_metadata:
        return options, []
    texts = {"prompt": _without_run(hidden.prompt), **(hidden.extra_pnginfo or {}), "eam_folder": {"name": name}}
    values = {key: json.dumps(value) for key, value in texts.items() if value is not None}
    if not png:
        exif, left_out = _exif(values, None if ending == ".webp" else _JPEG_EXIF_BYTES)
        return options | {"exif": exif}, left_out
    info = PngInfo()
    for key, value in values.items():
        info.add_text(key, value)
    return options | {"pnginfo": info}, []


def preview(path: Path) -> list[dict[str, str]]:
    """Name a saved file the way the browser asks for it; one outside the output folder cannot be shown."""
    root = Path(os.path.realpath(folder_paths.get_output_directory()))
    if not path.is_relative_to(root):
        return []
    return [{"filename": path.name, "subfolder": path.parent.relative_to(root).as_posix(), "type": "output"}]


def _without_run(prompt: dict[str, Any] | None) -> dict[str, Any] | None:
    """Leave out what core's run writes into the prompt."""
    if prompt is None:
        return None
    return {key: {k: v for k, v in node.items() if k != "is_changed"} for key, node in prompt.items()}


def saved_text(item: Any, key: str, saved: list[str], left_out: list[str]) -> str:
    """Say what a saver did: how far the folder is, the file's name, and what is missing in it."""
    text = f"{item.batch.progress()}: {printable(item.work.targets[key])}"
    if not saved:
        return f"{text} was there already"
    return f"{text}, without its {' and '.join(left_out)}: a JPEG holds 64 KB of metadata" if left_out else text


def _exif(values: dict[str, str], limit: int | None) -> tuple[bytes, list[str]]:
    """Write texts as core's WebP does; the longest are left out, and named, where a format has no room for them."""
    kept = dict(values)
    while True:
        exif = Image.Exif()
        for tag, key in zip(range(_FIRST_TAG, 0, -1), (key for key in kept if key != "prompt")):
            exif[tag] = f"{key}:{kept[key]}"
        if "prompt" in kept:
            exif[_PROMPT_TAG] = f"prompt:{kept['prompt']}"
        data = exif.tobytes()
        if limit is None or len(data) <= limit:
            return data, [key for key in values if key not in kept]
        del kept[max(kept, key=lambda key: len(kept[key]))]
