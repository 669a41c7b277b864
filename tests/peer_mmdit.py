"""The MMDiT of ComfyUI and of diffusers with our weights; to be imported once ComfyUI is on the path and configured."""

import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

from eam_core.model.mmdit import MMDiT, MMDiTParams


def comfy_mmdit(params: MMDiTParams, device: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Build ComfyUI's module for an architecture, from the numbers and not from our keys."""
    return OpenAISignatureMMDITWrapper(
        input_size=None,
        depth=params.depth,
        in_channels=params.in_channels,
        patch_size=params.patch_size,
        adm_in_channels=params.pooled_size,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": params.context_size, "out_features": params.hidden_size},
        },
        num_patches=params.pos_embed_max_size**2,
        pos_embed_max_size=params.pos_embed_max_size,
        qk_norm="rms" if params.qk_norm else None,
        x_block_self_attn_layers=list(params.dual_attention_blocks),
        dtype=dtype,
        device=device,
        operations=comfy.ops.disable_weight_init,
    )


def diffusers_mmdit(model: MMDiT) -> torch.nn.Module:
    """Build diffusers' module with a model's weights, where they are and in their dtype."""
    params, weight = model.params, next(model.parameters())
    with torch.device(weight.device):
        module = SD3Transformer2DModel(
            num_layers=params.depth,
            num_attention_heads=params.hidden_size // 64,
            attention_head_dim=64,
            joint_attention_dim=params.context_size,
            caption_projection_dim=params.hidden_size,
            pooled_projection_dim=params.pooled_size,
            pos_embed_max_size=params.pos_embed_max_size,
            qk_norm="rms_norm" if params.qk_norm else None,
            dual_attention_layers=params.dual_attention_blocks,
            out_channels=params.in_channels,
        ).to(weight.dtype)
    module.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(model.state_dict()))
    return module.eval()
