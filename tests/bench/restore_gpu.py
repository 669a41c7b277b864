"""Time of sampling 1024 x 1024 with SD3 medium's sizes on a GPU, and the memory that 4096 x 4096 takes there.

    python tests/bench/restore_gpu.py [--steps 8] [--lr-attention cross]

Random weights in bf16 through `TiledDenoiser`, with the LR keys and values computed once per tile and no CFG; encoding,
decoding and text are not in the figures. Without CUDA the rows are open.
"""

import time
from typing import get_args

import report
import torch

from eam_core.denoiser import Text, TiledDenoiser
from eam_core.flow import schedule
from eam_core.model.control import ControlParams, ControlStream, LRAttention
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT
from eam_core.model.psi_dit import PsiDiT
from eam_core.restore_config import RestoreConfig
from eam_core.sampling import sample_euler
from train.cost import BASES

MEDIUM = BASES["sd3-medium"]
NUM_TEXT_TOKENS = 154


def build(lr_attention: LRAttention) -> PsiDiT:
    """Build random networks on the GPU."""
    factory = Factory(device="cuda", dtype=torch.bfloat16)
    shared = {name: getattr(MEDIUM, name) for name in ("depth", "hidden_size", "in_channels", "qk_norm")}
    base = MMDiT(MEDIUM, factory)
    torch.nn.init.normal_(base.pos_embed, std=0.5)
    return PsiDiT(base, ControlStream(ControlParams(**shared, lr_attention=lr_attention), factory)).eval()


@torch.no_grad()
def sample(model: PsiDiT, size: int, steps: int) -> float:
    """Sample latents of a picture of the given size; return seconds."""
    config = RestoreConfig(steps=steps, sigma_start=1.0, shift=3.0, tile=1024, overlap=256)
    given = {"device": "cuda", "dtype": torch.float32}
    lr, noise = torch.randn(2, 1, 16, size // 8, size // 8, **given)
    text = Text(
        torch.randn(1, NUM_TEXT_TOKENS, MEDIUM.context_size, device="cuda", dtype=torch.bfloat16),
        torch.randn(1, MEDIUM.pooled_size, device="cuda", dtype=torch.bfloat16),
    )
    torch.cuda.synchronize()
    start = time.perf_counter()
    sigmas = schedule(steps, config.shift, 1.0)
    sample_euler(TiledDenoiser(model, lr, text, None, config), noise, sigmas, None)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--lr-attention", choices=get_args(LRAttention), default="cross")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds = memory = None
    name = f"sampling 1024 px, SD3 medium, {options.steps} steps, {options.lr_attention} cached, no CFG, no autoencoder"
    if torch.cuda.is_available():
        model = build(options.lr_attention)
        sample(model, 1024, 2)
        seconds = min(sample(model, 1024, options.steps) for _ in range(options.rounds))
        torch.cuda.reset_peak_memory_stats()
        sample(model, 4096, 2)
        memory = torch.cuda.max_memory_allocated() / 1e9
        print(report.machine("cuda"))
    report.finish(
        [
            report.Row(row=6, name=f"seconds of {name}, H100", value=seconds, bar=0.6),
            report.Row(row=7, name="GB of GPU memory, sampling 4096 px, library, SD3 medium", value=memory, bar=16.0),
        ],
        options.rows,
    )


if __name__ == "__main__":
    main()
