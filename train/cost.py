"""What training costs: memory and time of one step on common GPUs, from a count on the meta device.

python -m train.cost --base sd3-medium --size 512 1024 --keep 1 0.25
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from eam_core.model.mmdit import MMDiTParams
from train.meta_step import BYTES_PER_FROZEN, Case, count_step

BASES = {
    "sd3-medium": MMDiTParams(depth=24, hidden_size=1536),
    "sd3.5-medium": MMDiTParams(
        depth=24, hidden_size=1536, pos_embed_max_size=384, qk_norm=True, dual_attention_blocks=tuple(range(13))
    ),
    "sd3.5-large": MMDiTParams(depth=38, hidden_size=2432, qk_norm=True),
}
FAMILIES = ("psi_dit", "controlnet")
GIB = 2**30
TERA = 1e12

# SD3's autoencoder, which train.parts keeps in float32: all its weights; what encoding one picture needs per pixel.
AUTOENCODER_BYTES = 335_278_732
ENCODER_BYTES_PER_PIXEL = 2560
PICTURES_PER_SAMPLE = 2  # HR and LR


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU: memory in GiB, and the peak of dense bf16 arithmetic that its vendor states, in TFLOPS.

    `usable` leaves room for the CUDA context and for what the allocator cannot use.
    """

    name: str
    gib: int
    tflops: float
    usable: float = 0.92


CARDS = (
    Card(name="RTX 4090", gib=24, tflops=165.2),
    Card(name="A100", gib=40, tflops=312),
    Card(name="A100", gib=80, tflops=312),
    Card(name="H100 SXM", gib=80, tflops=989.4),
)


@dataclass(frozen=True)
class Plan:
    """How a card trains a case: samples at once, with or without gradient checkpointing, and computed seconds each."""

    micro_batch: int
    recompute: bool
    seconds: float


def encoder_flops(size: int) -> float:
    """Return the operations of encoding one picture with SD3's autoencoder: convolutions, and attention at 1/8."""
    pixels = size**2
    return pixels * (4_132_096 + pixels / 2)


def plan(case: Case, card: Card, num_cards: int, utilisation: float) -> Plan | None:
    """Find the largest micro-batch that a card holds, checkpointing only where nothing fits without it.

    Args:
        case: what is trained.
        card: the GPU.
        num_cards: above 1, weights, gradients, moments and average are sharded over so many (FSDP2).
        utilisation: share of the card's stated peak that training reaches.

    Returns:
        None where not even one sample fits.
    """
    for recompute in (False, True):
        one, two = (count_step(case, micro_batch=number, recompute=recompute) for number in (1, 2))
        room = card.gib * GIB * card.usable - AUTOENCODER_BYTES - one.state_bytes / num_cards
        if num_cards > 1:  # two blocks stand gathered at a time, the one that computes and the next
            room -= 2 * (one.frozen * BYTES_PER_FROZEN + one.trained * 4) / case.base.depth
        per_sample = two.activation_bytes - one.activation_bytes
        fit = (room - one.activation_bytes) // per_sample + 1
        encoded = room // (ENCODER_BYTES_PER_PIXEL * case.size**2)
        micro_batch = int(min(fit, encoded))
        if micro_batch >= 1:
            # Float32 convolutions run in TF32, at half the rate of bfloat16.
            flops = one.flops + 2 * PICTURES_PER_SAMPLE * encoder_flops(case.size)
            return Plan(micro_batch, recompute, flops / (utilisation * card.tflops * TERA))
    return None


def count_table(cases: Sequence[Case]) -> str:
    """Return a Markdown table of what one sample costs."""
    lines = [
        "| control | px | LR tokens kept | trained | states GiB | forward | step | step, gc | activations GiB | gc |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        plain, again = (count_step(case, micro_batch=1, recompute=recompute) for recompute in (False, True))
        lines.append(
            f"| {_named(case)} | {plain.trained / 1e9:.2f} B | {plain.state_bytes / GIB:.1f} "
            f"| {plain.forward_flops / TERA:.1f} | {plain.flops / TERA:.1f} | {again.flops / TERA:.1f} "
            f"| {plain.activation_bytes / GIB:.1f} | {again.activation_bytes / GIB:.1f} |"
        )
    return "\n".join(lines)


def plan_table(cases: Sequence[Case], num_cards: Sequence[int], utilisation: float) -> str:
    """Return a Markdown table of what fits which card, and how long it takes."""
    heads = " | ".join(f"{card.name} {card.gib} GB" for card in CARDS)
    lines = [f"| control | px | LR tokens kept | GPUs | {heads} |", "|---" * (4 + len(CARDS)) + "|"]
    for case in cases:
        for number in num_cards:
            cells = " | ".join(_cell(plan(case, card, number, utilisation)) for card in CARDS)
            lines.append(f"| {_named(case)} | {number} | {cells} |")
    return "\n".join(lines)


def _named(case: Case) -> str:
    name = "Psi-DiT" if case.family == "psi_dit" else f"ControlNet, {case.num_blocks} blocks"
    return f"{name} | {case.size} | {100 * case.keep:.4g} %"


def _cell(plan: Plan | None) -> str:
    if plan is None:
        return "-"
    return f"{plan.micro_batch}{', gc' if plan.recompute else ''}, {plan.seconds:.2f} s"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BASES, default="sd3-medium", help="frozen model (default sd3-medium)")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES, help="controls (default both)")
    parser.add_argument("--size", nargs="+", type=int, default=[512, 1024], help="pixels (default 512 1024)")
    parser.add_argument("--keep", nargs="+", type=float, default=[1, 0.25], help="LR tokens kept (default 1 0.25)")
    parser.add_argument("--num-blocks", type=int, default=12, help="of the ControlNet (default 12)")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8], help="cards that share the states (default 1 8)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="reached share of the peak (default 0.4)")
    options = parser.parse_args()
    if any(size < 16 or size % 16 for size in options.size):
        parser.error(f"expected every --size to be a multiple of 16, got {options.size}")
    if any(not 0 < keep <= 1 for keep in options.keep):
        parser.error(f"expected every --keep in (0, 1], got {options.keep}")
    if not 0 < options.utilisation <= 1 or min(options.gpus) < 1:
        parser.error(f"expected --utilisation in (0, 1] and --gpus from 1, got {options.utilisation}, {options.gpus}")
    if not 1 <= options.num_blocks <= BASES[options.base].depth:
        parser.error(f"expected --num-blocks from 1 to {BASES[options.base].depth}, got {options.num_blocks}")
    return options


def main() -> None:
    """Run from the command line."""
    options = parse()
    cases = [
        Case(BASES[options.base], family, size, keep, options.num_blocks)
        for family in options.family
        for size in options.size
        # A masked token of a ControlNet stays in its sequence, so masks save nothing there.
        for keep in (options.keep if family == "psi_dit" else [1.0])
    ]
    print(f"One sample on {options.base}, counted on the meta device (TFLOPs; gc: gradient checkpointing):\n")
    print(count_table(cases))
    print(
        "\nLargest micro-batch and seconds per sample, computed, not measured: "
        f"{options.utilisation:.0%} of the stated bf16 peak,\n"
        "HR and LR pictures encoded in TF32; several GPUs: FSDP2; gc: gradient checkpointing; -: does not fit:\n"
    )
    print(plan_table(cases, options.gpus, options.utilisation))


if __name__ == "__main__":
    main()
