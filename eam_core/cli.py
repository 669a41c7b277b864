"""The command line: restore a picture, or a folder of them, without ComfyUI; other commands have files of their own.

Torch and the model are imported only once there is work to do, so that help and typing errors answer at once.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .cli_batch import add_batch_command
from .cli_caption import add_caption_command
from .cli_convert import add_convert_command
from .cli_options import add_restore_options, load_restorer, restore_config
from .errors import EAMError, ImageError, printable

if TYPE_CHECKING:
    from .images import Picture
    from .pipeline import Restorer
    from .restore_config import RestoreConfig

EXIT_SOME_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence, without the whole usage before it."""
        self.exit(EXIT_BAD_INPUT, f"error: {printable(message)}; see {self.prog} --help\n")


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
    add_restore_options(upscale)
    add_batch_command(commands)
    add_caption_command(commands)
    add_convert_command(commands)
    return parser


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
        except OSError as error:  # a drive that is gone shows itself wherever it is looked at
            got = f"got {error.strerror or error} at {error.filename or 'a file'}"
            _say(f"error: expected files that can be read and written, {got}; check its drive")
            return EXIT_BAD_INPUT
        except KeyboardInterrupt:
            _say("stopped")
            return EXIT_INTERRUPTED


def upscale_command(args: argparse.Namespace) -> int:
    """Restore what the arguments name; refuse what cannot work before any weights are read."""
    from .jobs import check_job, make_folder, pair_files

    jobs = pair_files(args.input, args.output)
    config = restore_config(args)
    if args.input.is_dir():
        return _upscale_folder(args, jobs, config)
    source, target = jobs[0]
    picture = check_job(source, target, config.scale)
    restorer = load_restorer(args, config)
    make_folder(target.parent)
    _upscale_one(restorer, picture, target, config)
    return 0


def _upscale_folder(args: argparse.Namespace, jobs: list[tuple[Path, Path]], config: "RestoreConfig") -> int:
    """Restore one file after the other; list those that cannot be and go on, unless no other can be either."""
    from .jobs import check_job, is_lasting_trouble, make_folder

    restorer: Restorer | None = None
    sources: dict[Path, Path] = {}
    failed = 0
    for number, (source, target) in enumerate(jobs, start=1):
        try:
            if sources.setdefault(target, source) != source:
                raise ImageError(f"{source}: expected a name of its own, but {sources[target]} gives {target} as well")
            picture = check_job(source, target, config.scale)
        except EAMError as error:
            failed += _list_failure(error)
            if is_lasting_trouble(error, source.parent, target.parent):
                failed += _list_left_out(len(jobs) - number)
                break
            continue
        if restorer is None:  # outside of any try: what is wrong with the model is wrong for every file
            restorer = load_restorer(args, config)
            make_folder(target.parent)
        try:
            _upscale_one(restorer, picture, target, config)
        except EAMError as error:
            failed += _list_failure(error)
            if is_lasting_trouble(error, source.parent, target.parent):
                failed += _list_left_out(len(jobs) - number)
                break
    if failed:
        _say(f"error: {failed} of {len(jobs)} pictures were not restored, see above")
    return EXIT_SOME_FAILED if failed else 0


def _upscale_one(restorer: "Restorer", picture: "Picture", target: Path, config: "RestoreConfig") -> None:
    from tqdm import tqdm

    from .images import save_image
    from .jobs import restore_job

    start = time.monotonic()
    # Shown on a terminal only: disable=None.
    with tqdm(unit="tile", desc=printable(target.name, 60), disable=None, leave=False) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = restore_job(restorer, picture, target.name, config, on_progress)
    save_image(result, target)
    height, width = result.rgb.shape[-2:]
    print(f"{printable(target)}: {width} x {height} in {time.monotonic() - start:.1f} s", flush=True)


def _list_failure(error: EAMError) -> int:
    _say(f"skipped: {error}")
    return 1


def _list_left_out(count: int) -> int:
    if count:
        _say(f"stopped: the same holds for the other {count}, which are left out; mend it and run again")
    return count


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
