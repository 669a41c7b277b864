"""The command `batch`: restore a folder by several processes, GPUs or machines, and go on where it was killed."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .cli_options import add_restore_options, model_choice, restore_config
from .errors import DiskError, EAMError, printable

if TYPE_CHECKING:
    from .batch import Engine
    from .batch_store import Folder
    from .batch_worker import WorkerPlan

EXIT_SOME_FAILED = 1


def add_batch_command(commands: Any) -> None:
    """Describe the command and its options to the parser of the command line."""
    batch = commands.add_parser(
        "batch",
        help="restore a folder by several processes, GPUs or machines",
        description="Restore every picture of a folder by several workers. eam_batch.jsonl in OUT says what became of "
        "each; started again after any end, the batch goes on with what is left, and tries again what failed.",
        epilog="Exit status: 0 all restored, 1 some pictures failed, 2 nothing more could be done, 130 or 143 stopped.",
    )
    batch.set_defaults(run=batch_command)
    batch.add_argument("input", metavar="IN", help="folder of pictures: a path, or a URL such as s3://bucket/folder")
    batch.add_argument("output", metavar="OUT", help="folder of the results; names are kept")
    group = batch.add_argument_group("the work")
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="processes here (default), or a Ray cluster"
    )
    group.add_argument(
        "--num-workers", metavar="N", type=int, default=0, help="default: one per GPU; without GPUs one per two cores"
    )
    group.add_argument("--subfolders", action="store_true", help="take pictures of folders below as well")
    group.add_argument("--overwrite", action="store_true", help="do all pictures again, and replace files in the way")
    add_restore_options(batch)


def batch_command(args: argparse.Namespace) -> int:
    """Run a batch; refuse what cannot work before any worker starts."""
    from .batch import BatchRun
    from .batch_local import worker_threads
    from .batch_lock import locked
    from .batch_manifest import Manifest, check_settings
    from .batch_remote import check_apart, open_folder
    from .batch_store import tidy
    from .batch_worker import WorkerPlan

    if args.num_workers < 0:
        raise EAMError(f"expected --num-workers of at least 1, got {args.num_workers}; leave it out for the usual")
    config, model = restore_config(args), model_choice(args).absolute()
    source, output = open_folder(args.input), open_folder(args.output)
    check_apart(source, output, args.subfolders)
    sizes = source.pictures(args.subfolders)
    _make(output)
    weights = model.fingerprint()
    settings = {"input": source.url, "config": asdict(config), "model": weights}
    with locked(output) as lock, _stops() as stopped:
        present = output.sizes()
        tidy(output, present)
        manifest = Manifest(output, list(present))
        if not args.overwrite:
            check_settings(manifest, settings)
        manifest.start(settings, args.overwrite)
        run = BatchRun(source, output, manifest, sizes, present)
        if run.finished:
            _say(f"{len(run.finished)} of {len(sizes)} pictures were finished before")
        if run.num_left:
            threads = 0 if args.engine == "ray" else worker_threads(args.num_workers, args.device)
            places = {"input": source.address, "output": output.address}
            plan = WorkerPlan(**places, config=config, model=model, weights=weights, threads=threads)
            run.run(
                _engine(args, plan, run.num_left, (source, output)), lock, _Printer(output.url), lambda: stopped[0] > 0
            )
        if stopped[0]:
            _say(f"stopped: {len(run.finished)} of {len(sizes)} pictures are finished; start again to go on")
            return 128 + stopped[0]
    if run.failed:
        _say(f"error: {len(run.failed)} of {len(sizes)} pictures were not restored, see above")
    return EXIT_SOME_FAILED if run.failed else 0


def _make(output: "Folder") -> None:
    """Make the output folder where it lies on a disk."""
    try:
        if output.path:
            output.path.mkdir(exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"{output.url}: expected a folder, or one to make it in, could not ({error.strerror}); choose another one"
        ) from error


def _engine(args: argparse.Namespace, plan: "WorkerPlan", num_left: int, folders: "tuple[Folder, ...]") -> "Engine":
    from .batch_local import InlineEngine, LocalEngine, worker_environments

    # Such a folder lives in this process alone.
    if any(folder.url.startswith("memory:") for folder in folders):
        return InlineEngine(plan.text())
    if args.engine == "ray":
        from .batch_ray import RayEngine

        return RayEngine(plan.text(), args.num_workers)
    return LocalEngine(plan.text(), worker_environments(args.num_workers, args.device, plan.threads)[:num_left])


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Yield a list of one number, which becomes that of SIGINT or SIGTERM when it comes; a second one ends at once."""
    stopped = [0]

    def note(number: int, frame: object) -> None:
        if stopped[0]:
            raise KeyboardInterrupt
        stopped[0] = number

    before: dict[int, Callable[..., Any] | int | None] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Printer:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def done(self, name: str, record: dict[str, Any]) -> None:
        target = f"{self._folder}/{record['output']}"
        print(f"{printable(target)}: {record['width']} x {record['height']} in {record['seconds']:.1f} s", flush=True)

    def failed(self, sentence: str) -> None:
        _say(f"skipped: {sentence}")

    def note(self, sentence: str) -> None:
        _say(sentence)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
