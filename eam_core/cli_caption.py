"""The command `caption`: print what a vision-language model says of a picture, as one JSON object."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EAMError
from .presets import SD3

if TYPE_CHECKING:
    from .captioning.captioner import CaptionConfig, SubjectCaptioner


def add_caption_command(commands: Any) -> None:
    """Describe the command and its options to the parser of the command line."""
    caption = commands.add_parser(
        "caption",
        help="describe a picture for the prompt, by a vision-language model",
        description="Print a caption for a picture as one JSON object: caption, focused, focal_areas and tiles. Boxes "
        "are left, top, right and bottom as fractions of the picture.",
        epilog="An endpoint's API key is taken from the environment variable EAM_API_KEY.",
    )
    caption.set_defaults(run=caption_command)
    caption.add_argument("image", metavar="IMAGE", type=Path, help="picture to describe")
    caption.add_argument(
        "--model",
        metavar="DIR_OR_NAME",
        help="folder of a vision-language model (transformers); with --endpoint the name of one of its models",
    )
    caption.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible server: vLLM, llama.cpp, Ollama ...")
    caption.add_argument(
        "--allow-remote", action="store_true", help="send the picture to an endpoint on another machine"
    )
    caption.add_argument(
        "--mode", choices=("sa", "da"), default="sa", help="subject-aware (default) or detail-aware caption"
    )
    caption.add_argument("--extra", metavar="TEXT", default="", help="an instruction of your own, added to the prompt")
    caption.add_argument("--max-tokens", metavar="N", type=int, default=512, help="most tokens of an answer (512)")
    caption.add_argument("--seed", metavar="N", type=int, default=0, help="same seed, same caption (default 0)")
    caption.add_argument(
        "--temperature", metavar="N", type=float, default=0.3, help="0 always takes the likeliest word (default 0.3)"
    )
    caption.add_argument("--tiles", action="store_true", help="caption each tile of the enlarged picture as well")
    for option, value, text in (
        ("--scale", 4.0, "enlargement that the tiles are meant for"),
        ("--tile", SD3.tile, "side of a tile in output pixels"),
        ("--overlap", SD3.overlap, "overlap of tiles in output pixels"),
    ):
        caption.add_argument(option, metavar="N", type=type(value), default=value, help=f"{text} (default {value:g})")
    caption.add_argument(
        "--text-encoders",
        metavar="DIR",
        help="SD3 pipeline folder whose tokenizers say how much fits; without it the length is estimated",
    )
    caption.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default auto)")
    caption.add_argument(
        "--cache", metavar="DIR", help="where answers are kept (default: eam/captions in your cache folder)"
    )
    caption.add_argument("--no-cache", action="store_true", help="ask again, and keep nothing")


def caption_command(args: argparse.Namespace) -> int:
    """Caption what the arguments name; refuse what cannot work before any model is loaded."""
    from .captioning.captioner import CaptionConfig, report, tile_boxes
    from .captioning.messages import GenerateConfig
    from .images import load_image

    if not args.endpoint and not args.model:
        raise EAMError("expected --model DIR or --endpoint URL, got neither; name a model's folder or a server")
    picture = load_image(args.image).rgb[0]
    try:
        draw = GenerateConfig(max_tokens=args.max_tokens, seed=args.seed, temperature=args.temperature)
        config = CaptionConfig(mode=args.mode, extra=args.extra, generate=draw)
        boxes = tile_boxes(picture.shape[-2:], args.scale, args.tile, args.overlap) if args.tiles else []
    except ValueError as error:
        raise EAMError(str(error)) from error
    fields = report(*_captions(_captioner(args), picture, boxes, config))
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    print(json.dumps(fields, ensure_ascii=ascii_only))
    return 0


def _captioner(args: argparse.Namespace) -> "SubjectCaptioner":
    from .captioning.cache import CaptionCache
    from .captioning.captioner import SubjectCaptioner
    from .captioning.source import open_model
    from .captioning.wording import estimate_tokens
    from .sd3 import load_token_counter

    count = load_token_counter(args.text_encoders) if args.text_encoders else estimate_tokens
    source, name = (args.endpoint, args.model or "") if args.endpoint else (args.model, "")
    if args.endpoint and not source.lower().startswith(("http://", "https://")):
        raise EAMError(f"expected --endpoint to begin with http:// or https://, got {source!r}; give its whole address")
    model = open_model(source, name=name, device=args.device, allow_remote=args.allow_remote)
    folder = args.cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "eam" / "captions"
    return SubjectCaptioner(model, None if args.no_cache else CaptionCache(folder), count)


def _captions(captioner: "SubjectCaptioner", picture: Any, boxes: list[Any], config: "CaptionConfig") -> Any:
    """Return the whole picture's caption and those of the tiles, with a bar for the tiles on a terminal."""
    from tqdm import tqdm

    whole = captioner.caption(picture, config)
    with tqdm(total=len(boxes), unit="tile", disable=None if boxes else True, leave=False) as bar:

        def on_tile(done: int, total: int) -> None:
            bar.update(done - bar.n)

        return whole, captioner.caption_tiles(picture, boxes, whole, config, on_tile)
