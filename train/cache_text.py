"""Encode the captions of training pictures once: python -m train.cache_text --data SOURCE ... --captions sa ...

Every distinct caption and the empty one become a file of the cache folder; captions that are there already are passed
over, so a run that was stopped goes on where it was.
"""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from eam_core.device import named_device
from eam_core.errors import EAMError
from eam_core.sd3 import SD3TextEncoder
from train.data.captions import iter_captions
from train.data.config import DataConfig
from train.options import run_script
from train.text_cache import TextCache, fingerprint


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="SOURCE", help="as the training's --data")
    parser.add_argument("--captions", choices=("sa", "da"), required=True, help="kind of caption, as the training's")
    parser.add_argument("--caption-dir", default="", metavar="FOLDER", help="as the training's; of train.caption")
    parser.add_argument("--text-encoders", required=True, metavar="FOLDER", help="an SD3 pipeline (diffusers layout)")
    parser.add_argument("--cache", required=True, metavar="FOLDER", help="where the embeddings go")
    parser.add_argument("--batch-size", type=int, default=16, help="captions encoded together (default 16)")
    parser.add_argument(
        "--device", default="auto", help="where the encoders run: cpu, cuda, mps or auto (default auto: a GPU if found)"
    )
    options = parser.parse_args()
    if options.batch_size < 1:
        parser.error(f"expected --batch-size of at least 1, got {options.batch_size}")
    return options


def missing_captions(cache: TextCache, config: DataConfig) -> list[str]:
    """List the distinct captions, and the empty one, that the cache lacks."""
    captions = dict.fromkeys(["", *(caption for _, caption in iter_captions(config))])
    return [caption for caption in captions if caption not in cache]


def open_encoder(folder: Path, device: str) -> SD3TextEncoder:
    """Open the text encoders; T5's width is that of the tokens, 4096 without T5.

    Raises:
        EAMError: the folder is no SD3 pipeline, or a package is missing.
    """
    note = folder / "text_encoder_3" / "config.json"
    try:
        size = int(json.loads(note.read_text(encoding="utf-8"))["d_model"]) if note.parent.is_dir() else 4096
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise EAMError(f"expected T5's settings in {note}, cannot read them ({error}); download it again") from error
    return SD3TextEncoder(folder, context_size=size, device=named_device(device))


def main() -> None:
    """Run from the command line."""
    options = parse()
    encoder = open_encoder(Path(options.text_encoders), options.device)
    cache = TextCache.create(options.cache, fingerprint(options.text_encoders))
    config = DataConfig(data=tuple(options.data), captions=options.captions, caption_dir=options.caption_dir)
    todo = missing_captions(cache, config)
    with tqdm(total=len(todo), unit="caption", dynamic_ncols=True) as progress:
        captions = iter(todo)
        for texts in encoder.encode_batches(todo, options.batch_size):
            for text in texts:
                cache.write(next(captions), text)
            progress.update(len(texts))
    print(f"{len(todo)} captions encoded into {options.cache}")


if __name__ == "__main__":
    run_script(main)
