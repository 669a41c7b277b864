"""What keeping LR keys and values saves: CPU seconds of a sampling in ComfyUI's model, with and without.

    python tests/bench/lr_memory.py [--rounds 3] [--depth 6] [--tile 256]

Random weights of SD3's layout in a slice of its width (64 channels per block), controls `self` and `cross`, four tiles
that overlap in every step, eight steps, without CFG and at CFG 4, where both halves of the guidance read the same.
ComfyUI runs in this process, without its server. The last column is how far the two results are apart.
"""

# ruff: noqa: E402 (ComfyUI can be imported only after what stands above it)
import importlib
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import report
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))
from comfy_install import comfy_root
from comfy_launch import define_missing_operators

KINDS = ("self", "cross")
NUM_TEXT_TOKENS, STEPS, OVERLAP = 154, 8, 8


def pack(comfyui: Path) -> Callable[[str], ModuleType]:
    """Load ComfyUI and return what imports this pack's modules as ComfyUI does."""
    sys.path.insert(0, str(comfyui))
    own, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
    define_missing_operators()
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd

    sys.argv = own
    # Their own __init__ files would bring in the server, and with it every node.
    for name, folder in (("eam", ROOT), ("eam.nodes", ROOT / "nodes"), ("eam.eam_core", ROOT / "eam_core")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    logging.getLogger().setLevel(logging.WARNING)
    return lambda name: importlib.import_module(f"eam.{name}")


class Bench:
    """A random MODEL with a control, and a picture of 2 x 2 tiles."""

    def __init__(self, modules: Callable[[str], ModuleType], kind: str, depth: int, tile: int):
        """Build the networks; sizes in latents."""
        import comfy.sd

        self.modules, self.tile, side = modules, tile, 2 * tile - OVERLAP
        torch.manual_seed(0)
        mmdit, control = modules("eam_core.model.mmdit"), modules("eam_core.model.control")
        params = mmdit.MMDiTParams(depth=depth, hidden_size=64 * depth)
        stream = control.ControlStream(control.ControlParams(depth=depth, hidden_size=64 * depth, lr_attention=kind))
        base = {key: 0.02 * torch.randn_like(value) for key, value in mmdit.MMDiT(params).state_dict().items()}
        model = comfy.sd.load_diffusion_model_state_dict(base)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "control.safetensors"
            weights = {key: 0.02 * torch.randn_like(value) for key, value in stream.state_dict().items()}
            modules("eam_core.weight_files").save_weights(path, weights)
            patcher = modules("nodes.patcher")
            self.model = patcher.apply_control(model, patcher.load_control(path), 1.0, 0.0, 1.0)
        self.lr, self.noise = torch.randn(2, 1, 16, side, side)
        text = (torch.randn(1, NUM_TEXT_TOKENS, 4096), {"pooled_output": torch.randn(1, 2048)})
        self.positive, self.negative = (modules("nodes.conditioning").with_lr([text], self.lr) for _ in range(2))

    @torch.inference_mode()
    def sample(self, cfg: float, most_bytes: int) -> Tensor:
        """Sample as EAM_TiledSampler does, with so many bytes for LR keys and values."""
        import comfy.samplers

        self.modules("nodes.lr_memory").MOST_BYTES = most_bytes
        guider = self.modules("nodes.guider")
        tiling = guider.TilingConfig(tile=self.tile, overlap=OVERLAP, tile_batch=1, blend_every_step=True)
        tiled = guider.TiledGuider(self.model, tiling, cfg_start=cfg, cfg_end=cfg, fidelity=0.0)
        tiled.set_conds(self.positive, self.negative)
        sampler = comfy.samplers.sampler_object("euler")
        sigmas: Any = torch.linspace(1, 0, STEPS + 1)
        return tiled.sample(self.noise, torch.zeros_like(self.noise), sampler, sigmas, disable_pbar=True, seed=0)


def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--depth", type=int, default=6, help="blocks")
    parser.add_argument("--tile", type=int, default=256, help="side of a tile in pixels")
    parser.add_argument("--controls", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    modules = pack(comfy_root())
    print(report.machine())
    print(f"{options.depth} blocks of {64 * options.depth} channels, four tiles of {options.tile} px, {STEPS} steps")
    print("| control | CFG | seconds without | with | with / without | apart |\n|---|---|---|---|---|---|")
    rows = []
    for kind in options.controls:
        bench = Bench(modules, kind, options.depth, options.tile // 8)
        for cfg in (1.0, 4.0):
            results: dict[str, Tensor] = {}

            def run(name: str, most: int, cfg: float = cfg, bench: Bench = bench, into: dict = results) -> None:
                into[name] = bench.sample(cfg, most)

            cases = {"without": lambda run=run: run("without", 0), "with": lambda run=run: run("with", 2**32)}
            seconds = report.take_turns(cases, options.rounds)
            apart = (results["with"] - results["without"]).norm() / results["without"].norm()
            ratio = seconds["with"] / seconds["without"]
            print(
                f"| {kind} | {cfg:g} | {seconds['without']:.2f} | {seconds['with']:.2f} | {ratio:.2f} | {apart:.1e} |",
                flush=True,
            )
            name = f"LR keys and values kept over {STEPS} steps in ComfyUI, {kind}, CFG {cfg:g}"
            rows.append(report.Row(row=0, name=name, value=ratio, bar=1.0))
    report.finish(rows, options.rows)


if __name__ == "__main__":
    main()
