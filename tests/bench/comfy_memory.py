"""Peak GPU memory of 4096 x 4096 out in a real ComfyUI with SD3 medium's sizes, by default and under --lowvram.

    python tests/bench/comfy_memory.py            # needs CUDA; without it the rows are open
    python tests/bench/comfy_memory.py --rehearse # small networks, 128 px, on any device: only shows that it runs

Writes a checkpoint and a control with random weights in their real layout, starts ComfyUI for each way, and restores a
picture with the expert graph: EAM Load Model, EAM Apply Control, EAM Tiled Sampler at its default tiles, VAE Decode.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import report
import torch
from whole_restoration import ComfyServer

from eam_core.images import Picture, save_image
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.weight_files import save_weights
from train.cost import BASES

SMALL = MMDiTParams(depth=2, hidden_size=128, pos_embed_max_size=96)
WAYS = {"default settings": ((), 16.0), "--lowvram": (("--lowvram",), 8.0)}
NUM_TEXT_TOKENS = 154
SAMPLING = {"seed": 0, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "sgm_uniform"}
SAMPLING |= {"start_sigma": 1.0, "fidelity": 0.0, "tile": 0, "overlap": 0, "tile_batch": 0}
PACK = Path(__file__).with_name("comfy_memory_pack.py")


def random_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's weights as small random numbers, which time and memory do not depend on."""
    return {key: torch.randn_like(value) * 0.02 for key, value in module.state_dict().items()}


def write_models(folder: Path, params: MMDiTParams) -> None:
    """Write a base and a control that belong together where ComfyUI looks for them."""
    factory = Factory(dtype=torch.bfloat16)
    shared = {name: getattr(params, name) for name in ("depth", "hidden_size", "in_channels", "qk_norm")}
    control = ControlStream(ControlParams(**shared, lr_attention="self"), factory)
    base = {f"model.diffusion_model.{key}": value for key, value in random_weights(MMDiT(params, factory)).items()}
    for kind, weights in (("checkpoints", base), ("model_patches", random_weights(control))):
        save_weights(folder / kind / "random.safetensors", weights)


def prompt(picture: str, params: MMDiTParams) -> dict[str, Any]:
    """Return the expert graph; every sampling setting is the node's default."""
    text = {"tokens": NUM_TEXT_TOKENS, "channels": params.context_size, "pooled": params.pooled_size}
    applied = {"model": ["load", 0], "positive": ["text", 0], "negative": ["text", 0], "vae": ["vae", 0]}
    applied |= {"control": ["load", 3], "image": ["image", 0], "scale": 4.0, "control_scale": 1.0}
    sampled = {"model": ["apply", 0], "positive": ["apply", 1], "negative": ["apply", 2], "latent": ["apply", 3]}
    nodes = {
        "image": ("LoadImage", {"image": picture}),
        "load": ("EAM_LoadModel", {"checkpoint": "random.safetensors", "control": "random.safetensors"}),
        "vae": ("Bench_RandomVAE", {}),
        "text": ("Bench_ZeroText", text),
        "apply": ("EAM_ApplyControl", applied | {"start": 0.0, "end": 1.0}),
        "sample": ("EAM_TiledSampler", sampled | SAMPLING),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["vae", 0]}),
        "peak": ("Bench_PeakMemory", {"image": ["decode", 0]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def measure(flags: tuple[str, ...], params: MMDiTParams, size: int) -> int:
    """Restore one picture of size/4 in a ComfyUI of its own; return bytes, -1 without a GPU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder / "models", params)
        (folder / "custom_nodes").mkdir()
        shutil.copy(PACK, folder / "custom_nodes")
        with ComfyServer(folder, flags) as server:
            path = folder / "noise.png"
            save_image(Picture(rgb=torch.rand(1, 3, size // 4, size // 4)), path)
            found = server.run(prompt(server.upload_image(path), params))["peak"]
            assert found["size"] == [size, size]
            return found["peak"][0]


def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--rehearse", action="store_true", help="small networks and 128 px, on any device")
    options = parser.parse_args()
    params, size = (SMALL, 128) if options.rehearse else (BASES["sd3-medium"], 4096)
    cuda = torch.cuda.is_available()
    rows = []
    for way, (flags, bar) in WAYS.items():
        run = cuda or (options.rehearse and not flags)  # core takes --lowvram on a GPU only
        peak = measure(flags, params, size) if run else -1
        value = peak / 1e9 if peak >= 0 and not options.rehearse else None
        rows.append(report.Row(row=7, name=f"GB of GPU memory, 4096 px in ComfyUI, {way}", value=value, bar=bar))
    if options.rehearse:
        print("rehearsed")
    report.finish(rows, options.rows)


if __name__ == "__main__":
    main()
