"""How visible the borders between tiles are: mean gradient across them, against that elsewhere.

    python tests/bench/seams.py LR_DIR                        # the embedded default at its own settings
    python tests/bench/seams.py LR_DIR --overlap 0            # what a blend prevents

Pictures differ in what happens to lie at a border, so all of a folder count together, and each is also restored with
tiles half a stride further on: the same places of the same pictures then lie inside tiles. `ratio` compares borders
with all other places of the result; `ratio to moved tiles` compares the same places with and without a border, and is
free of what the pictures show. But it hardly tells a visible border from none (compare --overlap 0), so read both.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from eam_core.images import list_images, load_image
from eam_core.model.autoencoder import DOWNSCALE
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig


def borders(side: int, config: RestoreConfig) -> list[int]:
    """Return the pixels at which a tile begins or ends inside a result of the given side."""
    grid = config.latent_grid(side // DOWNSCALE, side // DOWNSCALE)
    edges = {edge for top in grid.tops for edge in (top, top + grid.tile_height)}
    return sorted(edge * DOWNSCALE for edge in edges if 0 < edge * DOWNSCALE < side)


def jumps(picture: Tensor) -> Tensor:
    """Return the mean absolute step [2, side - 1] between neighbouring columns and between rows, in grey levels."""
    steps = [255 * turned.diff(dim=-1).abs().mean((0, 1, 2)) for turned in (picture, picture.mT)]
    return torch.stack(steps)


def moved(restorer: Restorer, lr: Tensor, config: RestoreConfig, shift: int) -> Tensor:
    """Restore a picture continued by its mirror image at the top and left, so that tiles lie `shift` pixels apart."""
    margin = shift // int(config.scale)
    wider = F.pad(lr, (margin, 0, margin, 0), mode="reflect")
    return restorer.restore(wider, config)[..., margin * int(config.scale) :, margin * int(config.scale) :]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lr", type=Path, help="folder of square inputs of one size")
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    for name in ("tile", "overlap"):
        parser.add_argument(f"--{name}", type=int, default=getattr(RestoreConfig(), name), help="in output pixels")
    options = parser.parse_args()
    config = RestoreConfig(tile=options.tile, overlap=options.overlap)
    restorer, profiles = Restorer.embedded(), []
    paths = list_images(options.lr)[: options.limit]
    for path in tqdm(paths, desc="pictures"):
        lr = load_image(path).rgb
        pair = restorer.restore(lr, config), moved(restorer, lr, config, config.tile // 4)
        profiles.append(torch.stack([jumps(picture) for picture in pair]))
    side = profiles[0].shape[-1] + 1
    own, other = torch.stack(profiles).mean((0, 2))
    at = torch.zeros(side - 1, dtype=torch.bool)
    at[[edge - 1 for edge in borders(side, config)]] = True
    print(f"{len(paths)} results of {side} px, tiles of {config.tile} px, overlap {config.overlap}")
    print(f"borders at {borders(side, config)}: {own[at].mean():.4f} grey levels, elsewhere {own[~at].mean():.4f}")
    print(f"ratio {own[at].mean() / own[~at].mean():.4f}")
    print(f"ratio to moved tiles {own[at].mean() / other[at].mean():.4f}")


if __name__ == "__main__":
    main()
