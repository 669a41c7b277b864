"""Plans for 1, 8 and 1,000 GPUs by arithmetic: the tables of docs/SCALE.md.

    python tests/bench/scale.py [--utilisation 0.4] [--price 2] [--pixels 1024 4096]

Operations are counted on the meta device for SD3 medium with Psi-DiT; seconds are operations over a share of the peak
that a card's vendor states, not measured.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from eam_core.tile_plan import overlapping_tiles
from eam_core.tiling import TileGrid
from train.cost import BASES, CARDS, PICTURES_PER_SAMPLE, TERA, Card, encoder_flops
from train.meta_step import Case, count_step

TILE, OVERLAP, STEPS = 1024, 256, 28  # presets.SD3
PASSES = 2  # with and without the prompt: guidance
DECODER_FLOPS = 10.47e12 / 1024**2  # per pixel: diffusers' AutoencoderKL in SD3's sizes, counted at 1024 px
INPUT_BYTES, RESULT_BYTES = 1.8, 1.4  # PNG per pixel, the most of three sets of 20 test photos
MANIFEST_BYTES = 1000  # per picture: three lines
GPUS = (1, 8, 1000)
BATCH_SIZE, ITERATIONS = 64, 30_000  # recipe eam
LINKS = {"25 Gb/s": 25, "200 Gb/s": 200, "3.2 Tb/s": 3200}  # network of one machine with 8 GPUs


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one picture takes: tiles, and operations with encoding and decoding."""

    side: int
    tiles: int
    flops: float


def work(side: int) -> Work:
    """Count a restored square picture of so many pixels a side."""
    grid = overlapping_tiles(TileGrid(height=side // 8, width=side // 8, tile=TILE // 8, overlap=OVERLAP // 8))
    tile = 8 * grid.tile
    forward = count_step(Case(BASES["sd3-medium"], "psi_dit", tile), micro_batch=1, recompute=False).forward_flops
    ends = 2 * encoder_flops(tile) + 2 * DECODER_FLOPS * tile**2  # float32 in TF32, at half the rate
    return Work(side=side, tiles=len(grid.boxes), flops=len(grid.boxes) * (STEPS * PASSES * forward + ends))


def restoring(sides: list[int], utilisation: float, price: float) -> Iterator[str]:
    """Yield the table of pictures per hour and cost."""
    heads = " | ".join(f"{number:,} GPU{'s' * (number > 1)}" for number in GPUS)
    yield f"| result | TFLOPs | card | s per picture | {heads} | GPU hours per 1,000 | at {price:g} per GPU hour |"
    yield "|---" * (6 + len(GPUS)) + "|"
    for each in map(work, sides):
        for card in {card.name: card for card in CARDS}.values():
            seconds = each.flops / (utilisation * card.tflops * TERA)
            hours = 1000 * seconds / 3600
            rates = " | ".join(f"{number * 3600 / seconds:,.0f}" for number in GPUS)
            yield (
                f"| {each.side} x {each.side}, {each.tiles} tile{'s' * (each.tiles > 1)} | {each.flops / TERA:,.0f} "
                f"| {card.name} | {seconds:.1f} | {rates} | {hours:.2f} | {hours * price:.2f} |"
            )


def storage(sides: list[int], scale: int = 4) -> Iterator[str]:
    """Yield the table of bytes."""
    yield "| result | input | result as PNG | manifest | 1,000,000 pictures |"
    yield "|---|---|---|---|---|"
    for side in sides:
        read, written = (side / scale) ** 2 * INPUT_BYTES, side**2 * RESULT_BYTES
        total = (read + written + MANIFEST_BYTES) * 1e6
        yield f"| {side} x {side} | {read / 1e6:.2f} MB | {written / 1e6:.1f} MB | 1 kB | {total / 1e12:.1f} TB |"


def training(card: Card, utilisation: float, price: float) -> Iterator[str]:
    """Yield the table of a training on several machines of 8 GPUs."""
    step = count_step(Case(BASES["sd3-medium"], "psi_dit", 1024), micro_batch=1, recompute=False)
    flops = step.flops + 2 * PICTURES_PER_SAMPLE * encoder_flops(1024)
    seconds = flops / (utilisation * card.tflops * TERA)
    yield (
        "| machines x GPUs | samples per GPU and step | computing | "
        + " | ".join(f"gradients at {name}" for name in LINKS)
        + f" | hours for {ITERATIONS:,} steps, computing alone | GPU hours | at {price:g} per GPU hour |"
    )
    yield "|---" * (6 + len(LINKS)) + "|"
    for gpus in (1, 8, 16, 32, 64):
        machines = max(1, gpus // 8)
        compute = BATCH_SIZE / gpus * seconds
        # A ring: each machine sends and receives twice the gradients (float32), less its own share.
        gradients = 2 * (machines - 1) / machines * step.trained * 4
        waits = " | ".join(f"{gradients / (rate * 1e9 / 8):.2f} s" if machines > 1 else "-" for rate in LINKS.values())
        hours = ITERATIONS * compute / 3600
        yield (
            f"| {machines} x {min(gpus, 8)} | {BATCH_SIZE // gpus} | {compute:.2f} s | {waits} | {hours:.1f} "
            f"| {hours * gpus:,.0f} | {hours * gpus * price:,.0f} |"
        )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utilisation", type=float, default=0.4, help="reached share of a card's peak (default 0.4)")
    parser.add_argument("--price", type=float, default=1.0, help="of one GPU hour, in any currency (default 1)")
    parser.add_argument("--pixels", type=int, nargs="+", default=[1024, 2048, 4096], help="sides of results")
    args = parser.parse_args()
    card = next(card for card in CARDS if card.name == "H100 SXM")
    for title, lines in (
        ("Restoring, pictures per hour", restoring(args.pixels, args.utilisation, args.price)),
        ("Storage", storage(args.pixels)),
        (
            f"Training Psi-DiT at 1024 px, batch {BATCH_SIZE}, on {card.name}",
            training(card, args.utilisation, args.price),
        ),
    ):
        print(f"\n{title}\n")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
