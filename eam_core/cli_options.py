"""Options that every command for restoring shares, and what they mean: checked settings and a loaded model."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EAMError, printable
from .presets import EMBEDDED, SD3

if TYPE_CHECKING:
    from .job_model import ModelChoice
    from .pipeline import Restorer
    from .restore_config import RestoreConfig


def add_restore_options(parser: argparse.ArgumentParser) -> None:
    """Describe how a result is to be, how it is sampled and by which model."""
    _add_picture_options(parser.add_argument_group("the result"))
    _add_sampling_options(parser.add_argument_group("sampling"))
    _add_model_options(parser.add_argument_group("a model of your own"))


def _add_picture_options(group: Any) -> None:
    group.add_argument("--scale", metavar="N", type=float, default=4.0, help="enlargement from 1 to 8 (default 4)")
    group.add_argument("--seed", metavar="N", type=int, default=0, help="same seed, same picture (default 0)")
    group.add_argument(
        "--fidelity",
        metavar="N",
        type=float,
        default=0.0,
        help="0 lets the model invent, 1 keeps to the input (default 0)",
    )
    group.add_argument(
        "--control-scale", metavar="N", type=float, default=1.0, help="strength of the control (default 1)"
    )
    group.add_argument(
        "--color-fix",
        metavar="NAME",
        help=f"take the input's colours: wavelet, adain, lab or none (default {EMBEDDED.color_fix})",
    )


def _add_sampling_options(group: Any) -> None:
    def default(field: str) -> str:
        ours, theirs = getattr(EMBEDDED, field), getattr(SD3, field)
        return f"(default {ours})" if ours == theirs else f"(default {ours}, SD3 {theirs}, published models their own)"

    group.add_argument("--steps", metavar="N", type=int, help=f"model calls per tile {default('steps')}")
    group.add_argument(
        "--sigma-start",
        metavar="N",
        type=float,
        help=f"1 starts from noise, less from the input {default('sigma_start')}",
    )
    group.add_argument("--tile", metavar="N", type=int, help=f"side of a tile in output pixels {default('tile')}")
    group.add_argument(
        "--overlap", metavar="N", type=int, help=f"overlap of tiles in output pixels {default('overlap')}"
    )
    group.add_argument(
        "--tile-batch",
        metavar="N",
        type=int,
        help="tiles per model call (default 0: as many as make it faster and fit into memory)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the model first: minutes, then less time per tile (a tenth or more on a CPU); for large folders",
    )
    group.add_argument(
        "--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default auto: a GPU if found)"
    )


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--base",
        metavar="FILE",
        type=Path,
        help="SD3 checkpoint (.safetensors) or diffusers transformer folder; wants --control and --autoencoder too",
    )
    group.add_argument(
        "--control",
        metavar="FILE",
        type=Path,
        help="EAM control weights trained for the base, or file or folder of a published model (DiT4SR, TSD-SR)",
    )
    group.add_argument(
        "--autoencoder", metavar="DIR", type=Path, help="SD3's vae folder (diffusers), or an EAM autoencoder file"
    )
    group.add_argument(
        "--text-encoders", metavar="DIR", type=Path, help="SD3 pipeline folder (diffusers); without it no text"
    )
    group.add_argument(
        "--image-encoder",
        metavar="DIR",
        type=Path,
        help="CLIP vision tower (transformers) that the control's image prompt was trained with; without it none",
    )
    group.add_argument(
        "--encoder-noise",
        metavar="N",
        type=float,
        help="for models that start from the input itself (TSD-SR): 1 draws from what the encoder allows, "
        "0 takes its mean (default 1)",
    )
    group.add_argument(
        "--control-setting",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="of a published control: key_rule=first or r1, conv_scale=1.2 (DiT4SR)",
    )
    group.add_argument("--prompt", metavar="TEXT", default="", help="what the picture shows")
    group.add_argument("--negative-prompt", metavar="TEXT", default="", help="what it shall not show")
    group.add_argument(
        "--cfg",
        metavar="N",
        type=float,
        dest="cfg_scale",
        help=f"guidance towards the prompt, 1 is off (default {EMBEDDED.cfg_scale:g}, SD3 {SD3.cfg_scale:g})",
    )


def restore_config(args: argparse.Namespace) -> "RestoreConfig":
    """Turn arguments into checked settings on top of the model family's defaults.

    Raises:
        EAMError: a setting is out of bounds, or a model is named in part.
    """
    own = [name for name in ("base", "control", "autoencoder") if getattr(args, name) is not None]
    if "base" in own and len(own) < 3:
        raise EAMError("expected --base, --control and --autoencoder together, got only some of them; give all three")
    from .restore_config import RestoreConfig

    if args.base is None:
        spec = EMBEDDED
    else:
        from .loading import spec_of_files

        spec = spec_of_files(args.base, args.control)
    names = ("scale", "seed", "fidelity", "control_scale", "color_fix", "steps", "sigma_start", "tile", "overlap")
    names += ("tile_batch", "prompt", "negative_prompt", "cfg_scale", "encoder_noise")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        return RestoreConfig.from_spec(spec, **given)
    # A caller's mistake inside the library is the user's here, who typed the value.
    except ValueError as error:
        raise EAMError(str(error)) from error


def model_choice(args: argparse.Namespace) -> "ModelChoice":
    """Return which model the arguments name: files of the user's, for what is missing the embedded ones."""
    from .job_model import ModelChoice

    paths = {name: str(getattr(args, name) or getattr(EMBEDDED, name)) for name in ("base", "control", "autoencoder")}
    encoders = {name: str(path) for name in ("text_encoders", "image_encoder") if (path := getattr(args, name))}
    settings = dict(text.split("=", 1) if "=" in text else (text, "") for text in args.control_setting)
    return ModelChoice(**paths, **encoders, device=args.device, control_settings=settings, compiled=args.compile)


def load_restorer(args: argparse.Namespace, config: "RestoreConfig") -> "Restorer":
    """Load the model that the arguments name, say what its control has to say, and check that it serves the settings.

    Raises:
        EAMError: a file is not what it should be, or a setting does not fit.
    """
    restorer, notes = model_choice(args).load(config)
    for note in notes:
        print(printable(note), file=sys.stderr, flush=True)
    return restorer
