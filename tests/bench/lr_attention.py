"""Time of sampling one tile with each kind of LR attention, against `joint`, at the embedded default's size.

    python tests/bench/lr_attention.py --steps 1 2 8 --rounds 5

Weights are random: time does not depend on them. `self` and `cross` compute the LR tokens once for all steps
(`PsiDiT.remember`); `joint` cannot. The kinds take turns in every round; ratios are of median CPU seconds.
"""

import argparse
import itertools
import statistics
import time
from typing import get_args

import torch

from eam_core.flow import schedule, timestep
from eam_core.model.control import ControlParams, ControlStream, LRAttention
from eam_core.model.mmdit import MMDiT
from eam_core.model.psi_dit import PsiDiT
from eam_core.presets import EMBEDDED
from train.train_base import tiny


class Case:
    """One kind of LR attention on one tile of noise."""

    def __init__(self, lr_attention: LRAttention, tile: int):
        """Build random networks and inputs."""
        params = tiny().params
        shared = {name: getattr(params, name) for name in ("depth", "hidden_size", "in_channels", "qk_norm")}
        base = MMDiT(params)
        torch.nn.init.zeros_(base.pos_embed)
        self.model = PsiDiT(base, ControlStream(ControlParams(**shared, lr_attention=lr_attention)))
        side = tile // 8
        self.lr, self.x = torch.randn(2, 1, params.in_channels, side, side)
        self.text = (
            torch.zeros(1, EMBEDDED.num_null_tokens, params.context_size),
            torch.zeros(1, params.pooled_size),
        )

    @torch.no_grad()
    def seconds(self, steps: int) -> float:
        """Sample once; return CPU seconds."""
        start, x = time.process_time(), self.x
        lr = self.model.remember(self.lr) if self.model.control.can_remember else self.lr
        sigmas = schedule(steps, EMBEDDED.shift, EMBEDDED.sigma_start)
        for sigma, following in itertools.pairwise(sigmas):
            velocity = self.model(x, timestep(sigma[None]), *self.text, lr)
            x = x + (following - sigma) * velocity
        return time.process_time() - start


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--tile", type=int, default=EMBEDDED.tile, help="side in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cases = {kind: Case(kind, options.tile) for kind in get_args(LRAttention)}
    for case in cases.values():
        case.seconds(1)
    print("| steps | " + " | ".join(cases) + " |\n|---" + "|---" * len(cases) + "|")
    for steps in options.steps:
        times = {kind: [] for kind in cases}
        for _ in range(options.rounds):
            for kind, case in cases.items():
                times[kind].append(case.seconds(steps))
        medians = {kind: statistics.median(values) for kind, values in times.items()}
        print(f"| {steps} | " + " | ".join(f"{value / medians['joint']:.2f}" for value in medians.values()) + " |")
    weights = {kind: sum(p.numel() for p in case.model.control.parameters()) for kind, case in cases.items()}
    print(", ".join(f"{kind}: {count / 1e6:.2f} M control weights" for kind, count in weights.items()))


if __name__ == "__main__":
    main()
