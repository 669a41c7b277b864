"""The MMDiT of ComfyUI and of diffusers, built from an architecture's numbers; each needs its package only."""

import torch

from eam_core.model.mmdit import MMDiT, MMDiTParams


def comfy_mmdit(params: MMDiTParams, device: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Build ComfyUI's module, which must be on the path and configured, from the numbers and not from our keys."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

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


def diffusers_mmdit(params: MMDiTParams) -> torch.nn.Module:
    """Build diffusers' module with weights as it draws them."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
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
    ).eval()


def diffusers_mmdit_of(model: MMDiT) -> torch.nn.Module:
    """Build diffusers' module with a model's weights, where they are and in their dtype."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    weight = next(model.parameters())
    with torch.device(weight.device):
        module = diffusers_mmdit(model.params).to(weight.dtype)
    module.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(model.state_dict()))
    return module
