"""What each means of saving time gives, alone: time with it over time without it.

    python tests/bench/means.py [--rounds 5]

Layers with random weights of the model that runs on such a machine, the embedded default's size on a CPU and SD3
medium's on a GPU; whole runs with the embedded default. On a CPU these are CPU seconds. torch.compile takes a minute,
and the script prints after how many tiles it has paid. LR keys and values kept over the steps have a script of their
own, lr_memory.py.
"""

import dataclasses
import time
from collections.abc import Callable
from fractions import Fraction

import report
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from eam_core.compiling import CompileError
from eam_core.denoiser import TiledDenoiser
from eam_core.flow import schedule
from eam_core.model.autoencoder import PatchAutoencoder
from eam_core.model.layers import NORM_EPS, AttentionWeights, attention, gated, modulate
from eam_core.pipeline import AUTOENCODER_OVERLAP, AUTOENCODER_TILE, Restorer
from eam_core.restore_config import RestoreConfig
from eam_core.sampling import sample_euler
from eam_core.tiling import tiled_map

SIZES = {"cpu": (384, 256), "cuda": (1536, 4096)}  # width and tokens of a tile: embedded default, SD3 medium
LAYER_ROUNDS = 20  # times as many rounds for what takes milliseconds
Cases = dict[str, tuple[Callable[[], object], Callable[[], object]]]
"""By name: with the means, and without it."""


def layer_cases(device: str, dtype: torch.dtype) -> Cases:
    """Return what saves time within a block."""
    given, (width, num_tokens) = {"device": device, "dtype": dtype}, SIZES[device]
    weights = AttentionWeights(width).to(**given).requires_grad_(False)
    apart = nn.ModuleList(nn.Linear(width, width) for _ in range(3)).to(**given).requires_grad_(False)
    x, shift, scale = torch.randn(1, num_tokens, width, **given), *torch.randn(2, 1, width, **given)
    q, k, v = torch.randn(3, 1, width // 64, 2 * num_tokens, 64, **given)

    def two_passes() -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale.unsqueeze(-2)) + shift.unsqueeze(-2)
        return x + shift.unsqueeze(-2) * normed

    def plain_attention() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return attention(q, k, v)

    def three_matrices() -> list[Tensor]:
        return [layer(x).unflatten(-1, (-1, 64)).transpose(1, 2) for layer in apart]

    return {
        "query, key and value in one matrix": (lambda: weights.project(x), three_matrices),
        "modulation and gate in one pass each": (lambda: gated(x, shift, modulate(x, shift, scale)), two_passes),
        "fused attention (scaled_dot_product_attention)": (lambda: attention(q, k, v), plain_attention),
    }


def run_cases(restorer: Restorer) -> Cases:
    """Return what saves time in a run over a picture of 1024 px, with the embedded default."""
    lr, noise = torch.randn(2, 1, 16, 128, 128, device=restorer.device)

    def sample(**changes: object) -> Callable[[], Tensor]:
        config = dataclasses.replace(RestoreConfig(steps=1), **changes)
        sigmas = schedule(config.steps, config.shift, config.sigma_start)
        text, _ = restorer._texts(RestoreConfig())
        negative = text if config.cfg_scale != 1 else None
        return lambda: sample_euler(TiledDenoiser(restorer.model, lr, text, negative, config), noise, sigmas, None)

    guided = {"cfg_scale": 2.0, "steps": 4, "sigma_start": 1.0}
    return {
        "no second pass where guidance is 1": (sample(cfg_scale=1.0), sample(cfg_scale=2.0)),
        "guidance in two of four steps": (
            sample(**guided, cfg_start_percent=0.4, cfg_end_percent=0.8),
            sample(**guided),
        ),
        "tiles of 256 px at once, as many as pay": (sample(tile_batch=0), sample(tile_batch=1)),
    }


def autoencoder_cases(restorer: Restorer) -> Cases:
    """Return what fitting tiles save where a picture of 2000 px is encoded, and the layout in memory at 1000 px."""
    picture, raw = torch.rand(1, 3, 2000, 2000), torch.randn(1, 16, 125, 125, device=restorer.device)
    autoencoder = restorer.autoencoder
    assert isinstance(autoencoder, PatchAutoencoder)

    def fixed() -> Tensor:
        given = {"tile": AUTOENCODER_TILE, "overlap": AUTOENCODER_OVERLAP, "scale": Fraction(1, 8)}
        return tiled_map(lambda tiles: autoencoder.encode_degraded(tiles.to(restorer.device)), picture, **given)

    name = f"autoencoder tiles that fit, against {AUTOENCODER_TILE} px overlapping by {AUTOENCODER_OVERLAP}"
    cases: Cases = {name: (lambda: restorer.encode(picture), fixed)}
    if restorer.device.type == "cpu":
        cases["channels side by side in the decoder, CPU"] = (
            lambda: autoencoder.decode(raw),
            lambda: autoencoder.decoder(raw),
        )
    return cases


def cudnn_case(device: str, dtype: torch.dtype, rounds: int) -> report.Row:
    """Return what attention by cuDNN would give over the backend that PyTorch takes by itself."""
    row = report.Row(row=0, name="attention by cuDNN, against PyTorch's own choice, GPU", value=None, bar=1.0)
    if device != "cuda":
        return row
    width, num_tokens = SIZES[device]
    q, k, v = torch.randn(3, 1, width // 64, 2 * num_tokens, 64, device=device, dtype=dtype)

    def by_cudnn() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return attention(q, k, v)

    seconds = report.take_turns({"with": by_cudnn, "without": lambda: attention(q, k, v)}, rounds, device)
    return dataclasses.replace(row, value=seconds["with"] / seconds["without"])


def compiled_case(device: str, rounds: int) -> report.Row:
    """Return what torch.compile gives for one tile, and print after how many it has paid."""
    row = report.Row(row=0, name="torch.compile, one tile of 256 px of the embedded default", value=None, bar=1.0)
    config = RestoreConfig()
    restorers = {"with": Restorer.embedded(device), "without": Restorer.embedded(device)}
    start = time.perf_counter()
    try:
        restorers["with"].compile(config)
    except CompileError as error:
        print(error)
        return row
    spent, side = time.perf_counter() - start, config.tile // 8
    x = torch.randn(1, 16, side, side, device=device)
    cases = {
        name: (lambda r=r: TiledDenoiser(r.model, x, *r._texts(config), config)(x, 0.5))
        for name, r in restorers.items()
    }
    seconds = report.take_turns(cases, rounds, device)
    ratio = seconds["with"] / seconds["without"]
    if ratio < 1:
        print(f"torch.compile has paid after {spent / (seconds['without'] - seconds['with']):.0f} tiles of 256 px")
    return dataclasses.replace(row, value=ratio)


@torch.no_grad()
def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    restorer = Restorer.embedded(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    layers = layer_cases(device, dtype)
    runs = run_cases(restorer) | autoencoder_cases(restorer)
    rows = []
    for cases, rounds in ((layers, LAYER_ROUNDS * options.rounds), (runs, options.rounds)):
        for name, (with_it, without_it) in cases.items():
            seconds = report.take_turns({"with": with_it, "without": without_it}, rounds, device)
            rows.append(report.Row(row=0, name=name, value=seconds["with"] / seconds["without"], bar=1.0))
    rows.append(cudnn_case(device, dtype, LAYER_ROUNDS * options.rounds))
    rows.append(compiled_case(device, LAYER_ROUNDS * options.rounds))
    print(report.machine(device))
    report.finish(rows, options.rows)


if __name__ == "__main__":
    main()
