"""Time of sampling in tiles against the same number of bare model calls, and of what each way to save calls gives.

    python tests/bench/tiling.py [--size 1024] [--steps 2]

The embedded default on noise. The bare calls see tiles that were cut before the clock starts; the tiled run cuts,
remembers, blends and steps.
"""

import itertools

import report
import torch

from eam_core.denoiser import TiledDenoiser
from eam_core.flow import schedule, timestep
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from eam_core.sampling import sample_euler
from eam_core.tile_plan import overlapping_tiles


@torch.no_grad()
def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--size", type=int, default=1024, help="side of the result in pixels")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    restorer, side = Restorer.embedded(device), options.size // 8
    config = RestoreConfig(steps=options.steps, sigma_start=1.0, tile_batch=1, blend_every_step=True)
    lr, noise = torch.randn(2, 1, 16, side, side, device=device)
    texts = restorer._texts(config)
    sigmas = schedule(config.steps, config.shift, config.sigma_start).to(device)
    boxes = overlapping_tiles(config.latent_grid(side, side)).boxes
    tiles = [[part[..., y : y + h, x : x + w].contiguous() for part in (noise, lr)] for y, x, h, w in boxes]
    text, model = texts[0], restorer.model

    def bare() -> None:
        for sigma, (noisy, lr_tile) in itertools.product(sigmas[:-1], tiles):
            model(noisy, timestep(sigma[None]), text.context, text.pooled, lr_tile)

    def tiled() -> None:
        sample_euler(TiledDenoiser(model, lr, *texts, config), noise, sigmas, None)

    seconds = report.take_turns({"bare": bare, "tiled": tiled}, options.rounds, device)
    print(f"{report.machine(device)}: {len(boxes)} tiles of {config.tile} px, {config.steps} steps")
    ratio = seconds["tiled"] / seconds["bare"]
    name = f"sampling in tiles against bare model calls, embedded default, {options.size} px, "
    on_cpu, on_gpu = (ratio, None) if device == "cpu" else (None, ratio)
    report.finish(
        [
            report.Row(row=3, name=f"{name}CPU", value=on_cpu, bar=1.05),
            report.Row(row=3, name=f"{name}GPU", value=on_gpu, bar=1.03),
        ],
        options.rows,
    )


if __name__ == "__main__":
    main()
