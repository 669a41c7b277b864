"""Control weights on disk: one file, a folder or shards; of a whole published transformer only the control is read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import IMAGE_PROMPT_PREFIX, require
from .diffusers_keys import is_diffusers_key, to_sd3_keys
from .model.dit4sr import is_dead_key
from .weight_files import read_weights
from .weight_sets import WEIGHTS, weight_set

SAMPLE_ROWS = 64
# Rounding to bfloat16 on one side and to float16 on the other makes 0.002 at most; finetunes change more.
MAX_DIFFERENCE = 0.005


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlFile:
    """What was read of control weights.

    Attributes:
        tensors: the control's, and those of an image prompt beside it.
        source: what to call it in messages.
        base_samples: first rows of a few weights of the base that came with it, by SD3 key.
        unknown: keys that belong to nothing known.
    """

    tensors: dict[str, Tensor]
    source: str
    base_samples: dict[str, Tensor] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """Sentences on what was left out of it."""
        if not self.unknown:
            return []
        return [
            f"{self.source} holds {len(self.unknown)} tensors of unknown use, such as {self.unknown[0]}; they are left "
            "out, and results may suffer"
        ]


def read_control(path: str | Path, *, device: str = "cpu") -> ControlFile:
    """Read control weights of any family; tensors of a base beside them are left on the disk.

    Args:
        path: see `weight_sets.weight_set`.
        device: where the tensors go; "meta" gives shapes and dtypes without reading the data.

    Raises:
        CheckpointError: files are missing, damaged or pickled, or hold something else.
    """
    path = Path(path)
    source = _source(path)
    files = weight_set(path)
    shapes = {file: read_weights(file, device="meta") for file in files}
    everything = {key: value for found in shapes.values() for key, value in found.items()}
    wanted = set(require(everything, "control", source))
    wanted |= {key for key in everything if key.startswith(IMAGE_PROMPT_PREFIX)}
    if device == "meta":
        return ControlFile(tensors={key: everything[key] for key in sorted(wanted)}, source=source)
    tensors: dict[str, Tensor] = {}
    samples: dict[str, Tensor] = {}
    sampled = _sampled_keys(everything.keys() - wanted)
    for file, found in shapes.items():
        if found.keys() & wanted:
            tensors |= read_weights(file, device=device, only=wanted.__contains__)
        if found.keys() & sampled:
            samples |= read_weights(file, only=sampled.__contains__, rows=SAMPLE_ROWS)
    unknown = sorted(key for key in everything.keys() - wanted if not _is_known(key))
    return ControlFile(
        tensors=tensors, source=source, base_samples=to_sd3_keys(samples, source), unknown=tuple(unknown)
    )


def _source(path: Path) -> str:
    """Say which model a file or folder is where its own name is that of every model."""
    if path.name.startswith(Path(WEIGHTS).stem):
        path = path.parent
    return f"{path.parent.name}/{path.name}" if path.name == "transformer" else path.name


def differing_base(file: ControlFile, get: Callable[[str], Tensor | None]) -> str | None:
    """Compare the base that came with control weights with the one in use.

    Args:
        file: as read.
        get: gives a tensor of the base in use by SD3 key, or None where it cannot be compared.

    Returns:
        One sentence where some differ by more than half-precision rounding, else None.
    """
    for key, theirs in file.base_samples.items():
        ours = get(key)
        if ours is None or not _comparable(ours, theirs):
            continue
        theirs, ours = theirs.float(), ours.detach()[:SAMPLE_ROWS].to("cpu", torch.float32)
        if (ours - theirs).norm() > MAX_DIFFERENCE * theirs.norm():
            return (
                f"{file.source} comes with a base of its own that differs from the one in use, for example in {key}; "
                "results may suffer, as its control was trained with its own"
            )
    return None


def _comparable(ours: Tensor, theirs: Tensor) -> bool:
    plain = ours.dtype in (torch.float32, torch.float16, torch.bfloat16) and not ours.is_meta
    # What has no axes has no rows to compare.
    rows = plain and ours.ndim and theirs.ndim and theirs.is_floating_point()
    return bool(rows) and ours.shape[1:] == theirs.shape[1:] and len(ours) >= len(theirs)


def _sampled_keys(keys: Iterable[str]) -> set[str]:
    """Choose some weights that any finetune changes: at both ends and in the middle, not joined in SD3's layout."""
    outputs = sorted(key for key in keys if key.endswith(".attn.to_out.0.weight"))
    chosen = [outputs[place] for place in (0, len(outputs) // 2, -1)] if outputs else []
    return {*chosen, "pos_embed.proj.weight", "proj_out.weight"} & set(keys)


def _is_known(key: str) -> bool:
    return is_dead_key(key) or is_diffusers_key(key)
