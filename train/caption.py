"""Caption the pictures of data sets with a vision-language model, for training and for its text cache.

    python -m train.caption --images SOURCE [SOURCE ...] --out DIR --mode sa|da|both --model FOLDER
    python -m train.caption --images SOURCE [SOURCE ...] --out DIR --mode sa|da|both --endpoint URL [--model NAME]

--model URL is --endpoint URL with the first of its models.

Sources are those of training. DIR/KEY.sa.txt and DIR/KEY.da.txt are what training reads with --caption-dir DIR; if DIR
is the only source, a folder of pictures, captions lie beside these and training finds them by itself. The same command
goes on where a run was stopped, and tries again what failed, which DIR/failed.rankN.txt lists. Started by torchrun or
accelerate launch, or with RANK and WORLD_SIZE set, each process takes its share.

Exit status: 0 all pictures have captions, 1 some failed, 2 nothing could be done or the model is of no use.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from tqdm import tqdm

from eam_core.captioning.endpoint import Endpoint, TimeLimits
from eam_core.captioning.messages import GenerateConfig, Generator
from train.caption_data import MODES, AskConfig, DataCaptioner, check_keys, open_jobs
from train.caption_lists import drop_old_lists, list_failed, listed_keys
from train.data.config import DataError
from train.data.layouts import layout_name
from train.data.samples import Photo
from train.data.sources import all_photos, resolve
from train.options import run_script
from train.run_folder import drop_leftovers

_EXIT_SOME_FAILED = 1
_LONGEST_RUN = timedelta(days=90)


def caption_data(
    model: Generator,
    photos: Sequence[Photo],
    config: AskConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[int, int, int]:
    """Caption this process's share of the photos, as far as that is not done.

    Returns:
        How many pictures were there, how many of them had their captions, and how many failed.

    Raises:
        CaptionError: the model as such cannot be used.
        DiskError: a caption could not be written.
    """
    share, lists = photos[rank::world_size], config.lists or config.folder
    jobs, clashes = open_jobs(share, config)
    failed_before = listed_keys(lists)
    jobs.sort(key=lambda job: job.photo.key in failed_before)  # last, so that they cannot keep the others from it
    captioner = DataCaptioner(model, config)
    captioner.failed |= clashes
    only_one = {"disable": True} if rank else {}
    done = len(share) - len(jobs) - len(clashes)
    try:
        with tqdm(
            total=len(share), initial=len(share) - len(jobs), desc="captioning", unit="picture", **only_one
        ) as bar:
            captioner.run(jobs, bar.update)
    finally:
        list_failed(lists, rank, captioner.failed)
    return len(share), done, len(captioner.failed)


def captions_folder(out: Path, sources: Sequence[str]) -> Path:
    """Return the folder that keys are names in: `out`, or the one above if `out` is itself the folder of pictures.

    Keys begin with the name of the source's folder, so captions then lie beside their pictures.

    Raises:
        DataError: `out` is one of several sources, or a well-known data set.
    """
    same = [s for s in sources if Path(s).is_dir() and Path(s).resolve() == out.resolve()]
    named = [s for s in sources if layout_name(s.partition("=")[0]) and Path(s.partition("=")[2]) == out]
    if named or (same and len(sources) > 1):
        raise DataError(
            f"--out: expected a folder of its own for captions of {', '.join(sources)}, got one of these; name another "
            "and give it to training as --caption-dir"
        )
    if same and not any(out.glob("*.tar")):
        return out.resolve().parent
    return out


def open_generator(options: argparse.Namespace, local_rank: int) -> Generator:
    """Open the model that the command line names.

    Raises:
        CaptionError: there is none that can be used.
    """
    if options.endpoint:
        limits = TimeLimits(answer=options.timeout)
        return Endpoint(options.endpoint, options.model, options.allow_remote, concurrency=1, limits=limits)
    from eam_core.captioning.local import LocalModel

    device = options.device
    if device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        device = f"cuda:{local_rank % torch.cuda.device_count()}"
    return LocalModel(Path(options.model), device=device, batch_size=options.batch_size)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True, metavar="SOURCE", help="as the training's --data")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where captions go")
    parser.add_argument("--mode", choices=(*MODES, "both"), required=True, help="subject-aware, detail-aware, or both")
    parser.add_argument("--model", default="", help="folder or URL; with --endpoint the name of one of its models")
    parser.add_argument("--endpoint", default="", metavar="URL", help="an OpenAI-compatible one: http://127.0.0.1:8000")
    parser.add_argument("--allow-remote", action="store_true", help="let pictures go to an endpoint on another machine")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures at once, of a local model (default 1)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at once, of an endpoint (default 4)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for an endpoint's answer (default 600)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="of a local model")
    parser.add_argument("--seed", type=int, default=0, help="of the answers (default 0)")
    parser.add_argument("--temperature", type=float, default=0.3, help="0 takes the likeliest word (default 0.3)")
    parser.add_argument("--max-tokens", type=int, default=512, help="most tokens of an answer (default 512)")
    parser.add_argument("--extra", default="", help="an instruction added to the prompt's")
    options = parser.parse_args(argv)
    if not (options.model or options.endpoint):
        parser.error("expected --model FOLDER or --endpoint URL, got neither")
    if options.model.lower().startswith(("http://", "https://")):
        if options.endpoint:
            parser.error(
                f"expected the name of a model of {options.endpoint} as --model, got an address; name one of both"
            )
        options.endpoint, options.model = options.model, ""
    for name in ("batch_size", "concurrency", "timeout"):
        if not getattr(options, name) > 0:
            parser.error(f"expected --{name.replace('_', '-')} above 0, got {getattr(options, name)}")
    return options


def ask_config(options: argparse.Namespace) -> AskConfig:
    """Return what the options say about asking.

    Raises:
        DataError: a value is out of range, or --out cannot be used.
    """
    try:
        generate = GenerateConfig(max_tokens=options.max_tokens, seed=options.seed, temperature=options.temperature)
    except ValueError as error:
        raise DataError(str(error)) from error
    return AskConfig(
        folder=captions_folder(options.out, options.images),
        lists=options.out,
        modes=MODES if options.mode == "both" else (options.mode,),
        extra=options.extra,
        generate=generate,
        # One request per picture, so that each caption is written as soon as it is there.
        batch_size=1 if options.endpoint else options.batch_size,
        workers=options.concurrency if options.endpoint else 2,
        one_at_a_time=not options.endpoint,
    )


@contextmanager
def _together(rank: int, world_size: int) -> Iterator[Callable[[Sequence[int]], list[int]]]:
    """Yield a function that waits for all processes and adds their numbers up.

    A launcher ends all processes as soon as one has failed: who is ready with failures must wait for the others.
    """
    if world_size == 1 or "MASTER_ADDR" not in os.environ:
        yield list
        return
    distributed.init_process_group("gloo", rank=rank, world_size=world_size, timeout=_LONGEST_RUN)

    def added(numbers: Sequence[int]) -> list[int]:
        total = torch.tensor(numbers)
        distributed.all_reduce(total)
        return total.tolist()

    try:
        yield added
    finally:
        distributed.destroy_process_group()


def main() -> None:
    """Run the command line."""
    options = parse()
    rank, world_size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    config = ask_config(options)
    photos = all_photos(options.images)
    if resolve(options.images).shards:
        check_keys(photos)
    model = open_generator(options, local_rank)
    if rank == 0:
        drop_old_lists(options.out, world_size)
        drop_leftovers(options.out)
    with _together(rank, world_size) as added:
        counts = caption_data(model, photos, config, rank=rank, world_size=world_size)
        total, before, failed = added(counts)
        if rank == 0:
            new, lists = total - before - failed, f", see {options.out / 'failed.rank*.txt'}" if failed else ""
            print(f"{total} pictures: {new} captioned, {before} had captions, {failed} failed{lists}", flush=True)
        added([0])  # until that is said
    if failed:
        sys.exit(_EXIT_SOME_FAILED)


if __name__ == "__main__":
    run_script(main)
