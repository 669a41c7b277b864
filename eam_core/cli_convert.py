"""The command `convert-embedding`: turn TSD-SR's two pickled prompt embeddings into one safetensors file.

No pickle is run for it: `saved_tensor` compares what stands in the files with what a tensor's looks like.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, printable

if TYPE_CHECKING:
    from torch import Tensor

PROMPT_SIZE, POOL_SIZE = 4096, 2048  # channels of SD3's text tokens and of its pooled vector


def add_convert_command(commands: Any) -> None:
    """Describe the command and its options to the parser of the command line."""
    convert = commands.add_parser(
        "convert-embedding",
        help="turn TSD-SR's prompt embeddings (.pt) into a safetensors file",
        description="Read the two tensors that TSD-SR's authors publish as pickles, and write them as one safetensors "
        "file, which goes beside transformer.safetensors and vae.safetensors. Only a tensor is taken from each; "
        "nothing in them is run.",
    )
    convert.set_defaults(run=convert_command)
    convert.add_argument("prompt", metavar="PROMPT.pt", type=Path, help="prompt_embeds.pt, tokens of 4096 channels")
    convert.add_argument("pool", metavar="POOL.pt", type=Path, help="pool_embeds.pt, one vector of 2048 channels")
    convert.add_argument("output", metavar="OUT", type=Path, help="file to write, such as embeddings.safetensors")


def convert_command(args: argparse.Namespace) -> int:
    """Convert what the arguments name; nothing is written unless both files are right."""
    from .companions import save_embeddings
    from .denoiser import Text

    if args.output.suffix != ".safetensors":
        raise CheckpointError(
            f"expected an output ending in .safetensors, got {args.output}; use embeddings.safetensors"
        )
    prompt = _read(args.prompt, "[1, tokens, 4096] or [tokens, 4096]", 3, PROMPT_SIZE)
    pool = _read(args.pool, "[1, 2048] or [2048]", 2, POOL_SIZE)
    save_embeddings(args.output, Text(prompt, pool))
    print(f"{printable(args.output)}: {prompt.shape[1]} tokens")
    return 0


def _read(path: Path, wanted: str, num_axes: int, channels: int) -> "Tensor":
    """Read one tensor of the wanted shape from a file of torch.save, with its batch axis.

    Raises:
        CheckpointError: it is missing, holds anything but a tensor, or one of another shape.
    """
    from .saved_tensor import NotATensor, read_saved_tensor

    try:
        value = read_saved_tensor(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"expected a file at {path}, found none; check the name") from error
    except OSError as error:
        raise CheckpointError(
            f"expected a file that can be read, got {path} ({error.strerror}); check the name and its rights"
        ) from error
    except NotATensor as error:
        raise CheckpointError(
            f"expected one tensor as torch.save writes it, but {path} is damaged or holds something that is not a "
            f"tensor and was not run ({error}); get the file from the authors again"
        ) from error
    shape = list(value.shape)
    value = value[None] if value.ndim == num_axes - 1 else value
    fits = value.ndim == num_axes and len(value) == 1 and value.shape[-1] == channels and value.numel() > 0
    if not fits or not value.is_floating_point():
        raise CheckpointError(
            f"expected a tensor of floats {wanted} in {path.name}, got {value.dtype} {shape}; "
            "give prompt_embeds.pt first, then pool_embeds.pt"
        )
    return value
