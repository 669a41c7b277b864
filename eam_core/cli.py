"""The command line: restore a picture, or a folder of them, without ComfyUI; other commands have files of their own.

Torch and the model are imported only once there is work to do, so that help and typing errors answer at once.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .cli_caption import add_caption_command
from .cli_convert import add_convert_command
from .errors import DiskError, EAMError, ImageError
from .presets import EMBEDDED, SD3

if TYPE_CHECKING:
    from .images import Picture
    from .pipeline import Restorer
    from .restore_config import RestoreConfig

EXIT_SOME_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence, without the whole usage before it."""
        self.exit(EXIT_BAD_INPUT, f"error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    parser = _Parser(prog="python -m eam_core", description="EAM: blind super-resolution of photos.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    upscale = commands.add_parser(
        "upscale",
        help="restore a picture or a folder of pictures",
        description="Restore a picture, or every picture of a folder. Without --base the small embedded model runs, "
        "which knows no text; with --base, --control and --autoencoder a model of your own.",
        epilog="Exit status: 0 all restored, 1 some files of a folder failed, 2 nothing could be done.",
    )
    upscale.set_defaults(run=upscale_command)
    upscale.add_argument("input", metavar="IN", type=Path, help="PNG, JPEG, WebP, TIFF, BMP or GIF file, or a folder")
    upscale.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        help="file ending in .png, .jpg or .webp, or a folder; names are kept, formats that cannot be written "
        "become .png",
    )
    _add_picture_options(upscale.add_argument_group("the result"))
    _add_sampling_options(upscale.add_argument_group("sampling"))
    _add_model_options(upscale.add_argument_group("a model of your own"))
    add_caption_command(commands)
    add_convert_command(commands)
    return parser


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
    group.add_argument("--tile-batch", metavar="N", type=int, default=1, help="tiles per model call (default 1)")
    group.add_argument(
        "--device", metavar="NAME", default="auto", help="auto, cpu or cuda (default auto: cuda where there is one)"
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; the process's own when None.

    Returns:
        Exit status, see `python -m eam_core upscale --help`.
    """
    args = build_parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, category, *rest: _say(f"warning: {message}")
        try:
            return args.run(args)
        except EAMError as error:
            _say(f"error: {error}")
            return EXIT_BAD_INPUT
        except KeyboardInterrupt:
            _say("stopped")
            return EXIT_INTERRUPTED


def upscale_command(args: argparse.Namespace) -> int:
    """Restore what the arguments name; refuse what cannot work before any weights are read."""
    from .jobs import check_job, pair_files

    jobs = pair_files(args.input, args.output)
    config = _config(args)
    if args.input.is_dir():
        return _upscale_folder(args, jobs, config)
    source, target = jobs[0]
    picture = check_job(source, target, config.scale)
    _upscale_one(_load_restorer(args, config), picture, target, config)
    return 0


def _upscale_folder(args: argparse.Namespace, jobs: list[tuple[Path, Path]], config: "RestoreConfig") -> int:
    """Restore one file after the other; list those that cannot be and go on."""
    from .jobs import check_job

    restorer: Restorer | None = None
    sources: dict[Path, Path] = {}
    failed = 0
    for source, target in jobs:
        try:
            if sources.setdefault(target, source) != source:
                raise ImageError(f"{source}: expected a name of its own, but {sources[target]} gives {target} as well")
            picture = check_job(source, target, config.scale)
        except EAMError as error:
            failed += _list_failure(error)
            continue
        # Outside of any try: what is wrong with the model is wrong for every file.
        restorer = restorer or _load_restorer(args, config)
        try:
            _upscale_one(restorer, picture, target, config)
        except EAMError as error:
            failed += _list_failure(error)
    if failed:
        _say(f"error: {failed} of {len(jobs)} pictures were not restored, see above")
    return EXIT_SOME_FAILED if failed else 0


def _config(args: argparse.Namespace) -> "RestoreConfig":
    """Turn arguments into checked settings on top of the model family's defaults."""
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
    return _or_refuse(lambda: RestoreConfig.from_spec(spec, **given))


def _load_restorer(args: argparse.Namespace, config: "RestoreConfig") -> "Restorer":
    import torch

    from .pipeline import Restorer

    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = best if args.device == "auto" else args.device
    paths = {name: getattr(args, name) or getattr(EMBEDDED, name) for name in ("base", "control", "autoencoder")}
    encoders = {"text_encoders": args.text_encoders, "image_encoder": args.image_encoder}
    settings = dict(text.split("=", 1) if "=" in text else (text, "") for text in args.control_setting)
    restorer = Restorer.from_files(**paths, **encoders, device=device, control_settings=settings)
    for note in restorer.model.control.params.notes:
        _say(f"{Path(paths['control']).name}: {note}")
    _or_refuse(lambda: restorer.check(config))
    return restorer


def _or_refuse(make: Callable[[], Any]) -> Any:
    """Turn what is a caller's mistake inside the library into the user's, who typed the value."""
    try:
        return make()
    except ValueError as error:
        raise EAMError(str(error)) from error


def _upscale_one(restorer: "Restorer", picture: "Picture", target: Path, config: "RestoreConfig") -> None:
    import torch
    from tqdm import tqdm

    from .images import save_image

    start = time.monotonic()
    # Shown on a terminal only: disable=None.
    with tqdm(unit="tile", desc=target.name, disable=None, leave=False) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            result = restorer.restore_picture(picture, config, on_progress)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise EAMError(
                f"{target.name}: expected more memory for tiles of {config.tile} pixels; lower --tile or --tile-batch"
            ) from error
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise DiskError(f"{target.parent}: could not make the folder ({error.strerror}); choose another one") from error
    save_image(result, target)
    height, width = result.rgb.shape[-2:]
    print(f"{target}: {width} x {height} in {time.monotonic() - start:.1f} s", flush=True)


def _list_failure(error: EAMError) -> int:
    _say(f"skipped: {error}")
    return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
