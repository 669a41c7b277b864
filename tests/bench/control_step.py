"""Time of one step with each control against a step of the base alone, at SD3 medium's width and 1024 px.

    python tests/bench/control_step.py            # CUDA: all 24 blocks, bf16; CPU: two blocks, float32

Weights are random. `self` and `cross` read what `PsiDiT.remember` computed once; `joint` and the ControlNet compute
their LR state in every step. On the CPU two blocks stand for 24, and one of a ControlNet for 12; the last block of
a network is cheaper than others, so `arithmetic`, the ratio of the operations, differs a little from that of 24 blocks.
On CUDA the share of the measured bf16 matmul peak is printed as well.
"""

import dataclasses

import report
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT
from eam_core.model.psi_dit import PsiDiT
from train.cost import BASES

MEDIUM = BASES["sd3-medium"]
BARS = {"joint": 3.0, "self": 1.8, "cross": 1.45}
NUM_TEXT_TOKENS = 333


def _attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *args: object, **kwargs: object) -> int:
    return sdpa_flop_count(q, k, v)


UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""By operator: its operations; torch has no formula for attention on a CPU."""


class Bench:
    """A base and its controls on one tile of noise."""

    def __init__(self, device: str, num_blocks: int, size: int):
        """Build random networks."""
        self.device, self.dtype = device, torch.bfloat16 if device == "cuda" else torch.float32
        params = dataclasses.replace(MEDIUM, depth=num_blocks)
        factory = Factory(device=device, dtype=self.dtype)
        base = MMDiT(params, factory)
        nn.init.normal_(base.pos_embed, std=0.5)
        shared = {name: getattr(params, name) for name in ("depth", "hidden_size", "in_channels", "qk_norm")}
        controls: dict[str, nn.Module] = {
            kind: ControlStream(ControlParams(**shared, lr_attention=kind), factory) for kind in BARS
        }
        controls["ControlNet-12"] = ControlNet(ControlNetParams.for_base(params, max(1, num_blocks // 2)), factory)
        self.models = {name: PsiDiT(base, control).eval().requires_grad_(False) for name, control in controls.items()}
        for tensor in (
            *self.models["joint"].state_dict().values(),
            *self.models["ControlNet-12"].state_dict().values(),
        ):
            if tensor.ndim > 1:
                tensor.normal_(std=0.02)
        self.base, side = base, size // 8
        given = {"device": device, "dtype": self.dtype}
        noisy, self.lr = torch.randn(2, 1, 16, side, side, **given)
        context = torch.randn(1, NUM_TEXT_TOKENS, params.context_size, **given)
        self.inputs = noisy, torch.full((1,), 500.0, **given), context, torch.randn(1, 2048, **given)

    def state(self, name: str) -> Tensor | list:
        """Return what a step of this control starts from."""
        model = self.models[name]
        return model.remember(self.lr) if model.control.can_remember else self.lr

    def step(self, name: str, state: Tensor | list | None) -> Tensor:
        """Predict once."""
        return self.base(*self.inputs) if state is None else self.models[name](*self.inputs, state)


def peak_flops(device: str) -> float:
    """Return the matmul rate in bf16 that this GPU reaches, FLOP/s."""
    a, b = torch.randn(2, 8192, 8192, device=device, dtype=torch.bfloat16)
    seconds = report.take_turns({"matmul": lambda: [torch.matmul(a, b) for _ in range(10)]}, 5, device)["matmul"]
    return 10 * 2 * 8192**3 / seconds


def table(seconds: dict[str, float], where: str) -> list[report.Row]:
    """Return the rows of one machine and size; without figures they are open."""
    ratio = {name: value / seconds["base"] for name, value in seconds.items()}
    rows = [
        report.Row(row=2, name=f"step with {name} against the base's, {where}", value=ratio.get(name), bar=bar)
        for name, bar in BARS.items()
    ]
    name = f"step with cross against one with ControlNet-12, {where}"
    return [
        *rows,
        report.Row(row=2, name=name, value=ratio["cross"] / ratio["ControlNet-12"] if ratio else None, bar=1.0),
    ]


@torch.no_grad()
def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--blocks", type=int, help="24 on CUDA, else 2")
    parser.add_argument("--size", type=int, default=1024, help="side in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(device, options.blocks or (24 if device == "cuda" else 2), options.size)
    states = {"base": None} | {name: bench.state(name) for name in bench.models}
    cases = {name: (lambda name=name, state=state: bench.step(name, state)) for name, state in states.items()}
    operations = {}
    for name, case in cases.items():
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            case()
        operations[name] = counter.get_total_flops()
    seconds = report.take_turns(cases, options.rounds, device)
    print(report.machine(device))
    print("| step | time / base | arithmetic |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value / seconds['base']:.2f} | {operations[name] / operations['base']:.2f} |")
    size = f"{bench.base.params.depth} blocks of SD3 medium at {options.size} px, CPU"
    rows = table(seconds if device == "cpu" else {}, size)
    rows += table(seconds if device == "cuda" else {}, "SD3 medium at 1024 px, GPU")
    share = operations["joint"] / seconds["joint"] / peak_flops(device) if device == "cuda" else None
    name = "share of the bf16 matmul peak, step with joint, 1024 px, GPU"
    rows.append(report.Row(row=5, name=name, value=share, bar=0.55, limit="at least"))
    report.finish(rows, options.rows)


if __name__ == "__main__":
    main()
