"""Time of one forward pass of the MMDiT against ComfyUI's and diffusers', with the same weights and attention.

    python tests/bench/mmdit_forward.py [--rounds 60]     # CPU: small, float32; CUDA: SD3 medium at 1024 px, bf16

Weights are random: time does not depend on them. The three take turns; the figure is ours over the faster of theirs.
"""

# ruff: noqa: E402 (ComfyUI can be imported only after what stands above it)
import sys
from pathlib import Path

import report
import torch

sys.path += [str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests")]
from comfy_install import comfy_root
from comfy_launch import define_missing_operators

OPTIONS = report.parser(__doc__)
OPTIONS.add_argument("--rounds", type=int, default=60)
GIVEN = OPTIONS.parse_args()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# ComfyUI reads the command line when it is imported.
sys.argv = [sys.argv[0], "--use-pytorch-cross-attention", *(["--cpu"] if DEVICE == "cpu" else [])]
sys.path.insert(0, str(comfy_root()))
if DEVICE == "cpu":
    define_missing_operators()
import comfy.options

comfy.options.enable_args_parsing()
from peer_mmdit import comfy_mmdit, diffusers_mmdit_of

from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams

SMALL = MMDiTParams(depth=6, hidden_size=384, context_size=64, pooled_size=64, pos_embed_max_size=64)
MEDIUM = MMDiTParams(depth=24, hidden_size=1536)
NUM_TEXT_TOKENS = 154


def networks(params: MMDiTParams, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Build the three with equal weights."""
    ours = MMDiT(params, Factory(device=DEVICE, dtype=dtype)).eval().requires_grad_(False)
    for tensor in ours.state_dict().values():
        tensor.normal_(std=0.02)
    theirs = comfy_mmdit(params, DEVICE, dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    return {"ours": ours, "ComfyUI": theirs, "diffusers": diffusers_mmdit_of(ours)}


@torch.no_grad()
def main() -> None:
    """Run from the command line."""
    cuda = DEVICE == "cuda"
    params, dtype, side = (MEDIUM, torch.bfloat16, 128) if cuda else (SMALL, torch.float32, 64)
    found = networks(params, dtype)
    given = {"device": DEVICE, "dtype": dtype}
    x, timestep = torch.randn(1, params.in_channels, side, side, **given), torch.full((1,), 500.0, **given)
    context = torch.randn(1, NUM_TEXT_TOKENS, params.context_size, **given)
    pooled = torch.randn(1, params.pooled_size, **given)
    cases = {
        "ours": lambda: found["ours"](x, timestep, context, pooled),
        "ComfyUI": lambda: found["ComfyUI"](x, timestep, context=context, y=pooled),
        "diffusers": lambda: found["diffusers"](x, context, pooled, timestep).sample,
    }
    results = {name: case().float() for name, case in cases.items()}
    for name, result in results.items():
        difference = float((result - results["ours"]).abs().max() / results["ours"].abs().max())
        assert difference < (0.1 if cuda else 1e-3), f"{name} computes something else: {difference:.2g} off"
    seconds = report.take_turns(cases, GIVEN.rounds, DEVICE)
    print(report.machine(DEVICE))
    print(", ".join(f"{name} {value / seconds['ours']:.3f}" for name, value in seconds.items()), "(ours = 1)")
    ratio = seconds["ours"] / min(seconds["ComfyUI"], seconds["diffusers"])
    name = "forward pass against the faster of ComfyUI and diffusers, "
    small = report.Row(row=1, name=f"{name}{SMALL.depth} blocks of {SMALL.hidden_size}, CPU", value=None, bar=1.0)
    large = report.Row(row=1, name=f"{name}SD3 medium at 1024 px, GPU", value=None, bar=1.0)
    done = report.Row(row=1, name=(large if cuda else small).name, value=ratio, bar=1.0)
    report.finish([small, done] if cuda else [done, large], GIVEN.rows)


if __name__ == "__main__":
    main()
