"""Compare this library's MMDiT with ComfyUI's and diffusers' and print the findings: parity_probe.py COMFYUI_FOLDER.

A process of its own, because ComfyUI reads the command line when it is imported.
"""

# ruff: noqa: E402 (ComfyUI can be imported only after what stands above it)
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path += [str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests")]
from comfy_launch import define_missing_operators

sys.path.insert(0, sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]
define_missing_operators()

import comfy.options

comfy.options.enable_args_parsing()

import comfy.sd
import comfy.utils
from comfy.model_detection import detect_unet_config, model_config_from_unet
from peer_mmdit import comfy_mmdit, diffusers_mmdit_of

from eam_core.checkpoint import CHECKPOINT_PREFIX
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.weight_files import save_weights

REAL_SIZES = {
    "sd3-medium": MMDiTParams(depth=24, hidden_size=1536),
    "sd3.5-medium": MMDiTParams(
        depth=24, hidden_size=1536, pos_embed_max_size=384, qk_norm=True, dual_attention_blocks=tuple(range(13))
    ),
    "sd3.5-large": MMDiTParams(depth=38, hidden_size=2432, qk_norm=True),
}
SMALL: dict[str, Any] = {"depth": 3, "hidden_size": 192, "context_size": 40, "pooled_size": 24, "pos_embed_max_size": 9}
SMALL_VARIANTS = {
    "plain": MMDiTParams(**SMALL),
    "qk norm": MMDiTParams(**SMALL, qk_norm=True),
    "qk norm and dual attention": MMDiTParams(**SMALL, qk_norm=True, dual_attention_blocks=(0, 2)),
}
Velocity = Callable[..., torch.Tensor]
LATENT_SIZES = ((8, 8), (6, 14), (11, 14), (13, 5), (1, 1), (18, 18))
TINY = MMDiTParams(depth=4, hidden_size=256, context_size=64, pooled_size=64, pos_embed_max_size=64)


def randomized(params: MMDiTParams) -> MMDiT:
    """Build our module with weights that keep every path visible in the output."""
    torch.manual_seed(0)
    model = MMDiT(params)
    for tensor in model.state_dict().values():
        tensor.normal_(std=tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.5)
    return model.eval()


def inputs(params: MMDiTParams, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """Draw latents, timesteps, context and pooled text for a batch of two."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    latents = torch.randn(2, params.in_channels, height, width, generator=generator)
    context = torch.randn(2, 7, params.context_size, generator=generator)
    pooled = torch.randn(2, params.pooled_size, generator=generator)
    return latents, torch.tensor([731.5, 12.0]), context, pooled


def compare_keys() -> dict[str, Any]:
    """Compare keys and shapes at the published sizes, without memory."""
    report = {}
    for name, params in REAL_SIZES.items():
        model = MMDiT(params, Factory(device="meta"))
        ours, theirs = (
            {key: tuple(value.shape) for key, value in module.state_dict().items()}
            for module in (model, comfy_mmdit(params, "meta"))
        )
        detected = detect_unet_config(model.state_dict(), "")
        report[name] = {
            "keys": len(ours),
            "only_ours": sorted(ours.keys() - theirs.keys()),
            "only_theirs": sorted(theirs.keys() - ours.keys()),
            "shapes_differ": sorted(key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]),
            "detected": [detected["depth"], detected["pos_embed_max_size"], detected.get("qk_norm")],
            "detected_dual": detected["x_block_self_attn_layers"],
        }
    return report


def comfy_velocity(model: MMDiT) -> Velocity:
    """Return ComfyUI's module with our weights as a function of our inputs."""
    module = comfy_mmdit(model.params, "cpu").eval()
    module.load_state_dict(model.state_dict())
    return lambda latents, timestep, context, pooled: module(latents, timestep, context=context, y=pooled)


def diffusers_velocity(model: MMDiT) -> Velocity:
    """Return diffusers' module with our weights as a function of our inputs."""
    module = diffusers_mmdit_of(model)
    return lambda latents, timestep, context, pooled: module(latents, context, pooled, timestep).sample


@torch.no_grad()
def compare_numbers(make_reference: Callable[[MMDiT], Velocity]) -> list[dict[str, Any]]:
    """Run our module and a reference on the same weights and inputs."""
    report = []
    for name, params in SMALL_VARIANTS.items():
        ours = randomized(params)
        reference = make_reference(ours)
        for height, width in LATENT_SIZES:
            if make_reference is diffusers_velocity and (height % 2 or width % 2):
                continue  # diffusers takes even sizes only
            given = inputs(params, height, width)
            expected, got = reference(*given), ours(*given)
            report.append(
                {
                    "variant": name,
                    "latents": [height, width],
                    "same_shape": got.shape == expected.shape == given[0].shape,
                    "difference": (got - expected).abs().max().item(),
                    "output_std": expected.std().item(),
                }
            )
    return report


@torch.no_grad()
def load_saved() -> dict[str, Any]:
    """Let ComfyUI detect and load files that this library saved, with and without the prefix of whole checkpoints."""
    model, report = randomized(TINY), {}
    latents, timestep, context, pooled = inputs(TINY, 12, 18)
    expected = model(latents, timestep, context, pooled)
    for name, prefix in (("bare", ""), ("prefixed", CHECKPOINT_PREFIX)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "base.safetensors"
            save_weights(path, {prefix + key: value for key, value in model.state_dict().items()})
            state = comfy.utils.load_torch_file(str(path), safe_load=True)
        config = model_config_from_unet(state, prefix)
        patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
        got = patcher.model.diffusion_model(latents, timestep, context=context, y=pooled)
        report[name] = {
            "config": type(config).__name__,
            "model": type(patcher.model).__name__,
            "difference": (got - expected).abs().max().item(),
            "output_std": expected.std().item(),
        }
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    report = {
        "keys": compare_keys(),
        "comfyui": compare_numbers(comfy_velocity),
        "diffusers": compare_numbers(diffusers_velocity),
        "saved": load_saved(),
    }
    print(json.dumps(report))
