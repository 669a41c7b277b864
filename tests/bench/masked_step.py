"""Time of a training step with part of the LR tokens dropped, against all of them, at SD3-medium's proportions.

    python tests/bench/masked_step.py                     # CUDA: 24 blocks in bf16; else four in float32
    python tests/bench/masked_step.py --kept 1 0.5 0.25 0.125 --threads 1

A step is forward, backward and AdamW on the control; the base is frozen, weights are random. The variants take turns
in every round; the ratio is that of the medians. On a CPU, the process's own CPU time counts, so that others on the
machine disturb less. `arithmetic` is the ratio of the operations (train.meta_step) of the same slice, and of all 24
blocks at 1024 px.
"""

import dataclasses
import statistics

import report
import torch
from torch import Tensor

from eam_core.mim import keep_tokens
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT
from eam_core.model.psi_dit import PsiDiT
from eam_core.model.recompute import RecomputedGuest
from train.cost import BASES
from train.meta_step import NUM_TEXT_TOKENS, Case, count_step

SD3 = BASES["sd3-medium"]
KEPT = (1.0, 0.25)
WHOLE_SIZE = 1024
_CPU_BLOCKS = 4  # the last block of a control is cheaper than the others: two would say little of 24


class Bench:
    """One model and one batch; `step` is what is timed."""

    def __init__(self, case: Case, device: str, recompute: bool):
        """Build random networks: the base in the precision of computing, the control in float32."""
        self.case, self.device = case, device
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        base = MMDiT(case.base, Factory(device=device, dtype=self.dtype))
        torch.nn.init.normal_(base.pos_embed, std=0.5)
        shared = {name: getattr(case.base, name) for name in ("depth", "hidden_size", "in_channels", "qk_norm")}
        control = ControlStream(ControlParams(**shared), Factory(device=device))
        self.model = PsiDiT(base, control)
        if recompute:
            self.model.wrap_guest = RecomputedGuest
        self.optimizer = torch.optim.AdamW(control.parameters(), lr=1e-5, fused=True)
        side = case.size // 8
        noisy, self.lr = torch.randn(2, 1, 16, side, side, device=device)
        context = torch.randn(1, NUM_TEXT_TOKENS, case.base.context_size, device=device)
        self.inputs = noisy, torch.full((1,), 500.0, device=device), context, torch.randn(1, 2048, device=device)

    def step(self, keep: Tensor | None) -> float:
        """Train once; returns seconds."""
        start = report.now(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            velocity = self.model(*self.inputs, self.lr, keep=keep)
        self.optimizer.zero_grad(set_to_none=True)
        (velocity.float() - self.lr).square().mean().backward()
        self.optimizer.step()
        return report.now(self.device) - start


def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--size", type=int, default=WHOLE_SIZE, help="pixels of the square picture (default 1024)")
    parser.add_argument("--blocks", type=int, help="default 24 on CUDA, 4 elsewhere")
    parser.add_argument(
        "--kept", nargs="+", type=float, default=KEPT, help="shares of LR tokens, compared with the first"
    )
    parser.add_argument("--rounds", type=int, help="default 20 on CUDA, 3 elsewhere")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all)")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing, where memory asks for it")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    blocks = options.blocks or (24 if device == "cuda" else _CPU_BLOCKS)
    case = Case(dataclasses.replace(SD3, depth=blocks), "psi_dit", options.size)
    bench = Bench(case, device, options.recompute)
    generator = torch.Generator().manual_seed(0)
    masks = [keep_tokens(case.num_tokens, 1 - kept, [generator]) for kept in options.kept]
    masks = [None if mask is None else mask.to(device) for mask in masks]
    bench.step(masks[-1])  # first calls allocate and choose kernels
    times: list[list[float]] = [[] for _ in masks]
    for _ in range(options.rounds or (20 if device == "cuda" else 3)):
        for mask, taken in zip(masks, times):
            taken.append(bench.step(mask))

    medians = [statistics.median(taken) for taken in times]
    flops, whole = (
        [count_step(dataclasses.replace(each, keep=kept), recompute=options.recompute).flops for kept in options.kept]
        for each in (case, Case(SD3, "psi_dit", WHOLE_SIZE))
    )
    print(f"{report.machine(device)}; width {SD3.hidden_size}, {blocks} blocks, {case.num_tokens} image tokens,")
    print(f"{NUM_TEXT_TOKENS} text tokens, batch 1{', gradient checkpointing' if options.recompute else ''}\n")
    print(f"| LR tokens kept | s per step | faster | arithmetic | arithmetic, 24 blocks, {WHOLE_SIZE} px |")
    print("|---|---|---|---|---|")
    for kept, median, own, all_blocks in zip(options.kept, medians, flops, whole):
        ratios = f"{medians[0] / median:.2f} | {flops[0] / own:.2f} | {whole[0] / all_blocks:.2f}"
        print(f"| {100 * kept:.4g} % | {median:.3g} | {ratios} |")
    quarter = dict(zip(options.kept, medians)).get(0.25)
    where = f"{blocks} blocks of SD3 medium, {options.size} px, {device}"
    name = f"training step with 25 % of the LR tokens, times faster than with all, {where}"
    value = None if quarter is None else medians[0] / quarter
    report.finish([report.Row(row=9, name=name, value=value, bar=1.5, limit="at least")], options.rows)


if __name__ == "__main__":
    main()
