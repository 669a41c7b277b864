"""How visible borders between tiles are: mean step across them over that elsewhere, and the same without tiles.

    python tests/bench/seams.py TEST_SET                        # the embedded default at its own settings, plain inputs
    python tests/bench/seams.py TEST_SET --overlap 0            # what a blend prevents

TEST_SET is a folder of train.prepare_test_set. All pictures count together. What lies at the places of the borders
has a ratio of its own, also because most photographs and inputs were JPEGs, whose blocks of 8 pixels end there too. So
the figure to read is the last one, the ratio of the results over that of results in one tile, at the same places.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from eam_core.images import list_images, load_image
from eam_core.model.autoencoder import DOWNSCALE
from eam_core.pipeline import Restorer
from eam_core.restore_config import RestoreConfig
from eam_core.seams import steps, tile_borders
from eam_core.tile_plan import overlapping_tiles


def borders(side: int, config: RestoreConfig) -> list[int]:
    """Return the pixels at which a tile begins or ends inside a result of the given side."""
    grid = overlapping_tiles(config.latent_grid(side // DOWNSCALE, side // DOWNSCALE))
    return tile_borders(grid.scaled(DOWNSCALE))[0]


def jumps(picture: Tensor) -> Tensor:
    """Return the mean absolute step [side - 1] between neighbouring columns and rows of a square, in grey levels."""
    return torch.stack(steps(picture)).mean(0)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test_set", type=Path, help="square pictures of one size")
    parser.add_argument("--inputs", default="lr-plain", help="folder of the test set (default lr-plain)")
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    for name in ("tile", "overlap"):
        parser.add_argument(f"--{name}", type=int, default=getattr(RestoreConfig(), name), help="in output pixels")
    options = parser.parse_args()
    config = RestoreConfig(tile=options.tile, overlap=options.overlap)
    restorer = Restorer.embedded()
    paths = list_images(options.test_set / options.inputs)[: options.limit]
    found: dict[str, list[Tensor]] = {"originals": [], "results": [], "results in one tile": []}
    for path in tqdm(paths, desc="pictures"):
        picture, original = load_image(path).rgb, load_image(options.test_set / "hr" / path.name).rgb
        whole = RestoreConfig(tile=max(original.shape[-2:]))
        made = original, restorer.restore(picture, config), restorer.restore(picture, whole)
        for profiles, image in zip(found.values(), made):
            profiles.append(jumps(image))
    side = len(found["results"][0]) + 1
    at = torch.zeros(side - 1, dtype=torch.bool)
    at[[edge - 1 for edge in borders(side, config)]] = True
    print(f"{len(paths)} results of {side} px, tiles of {config.tile} px, overlap {config.overlap}")
    ratios = []
    for name, profiles in found.items():
        profile = torch.stack(profiles).mean(0)
        ratios.append((profile[at].mean() / profile[~at].mean()).item())
        print(
            f"{name}: at {borders(side, config)} {profile[at].mean():.4f} grey levels, elsewhere "
            f"{profile[~at].mean():.4f}, ratio {ratios[-1]:.4f}"
        )
    print(f"ratio of the results over that of results in one tile {ratios[1] / ratios[2]:.4f}")


if __name__ == "__main__":
    main()
