"""Guidance: what is mixed into the denoised latents at each step, and how strongly at which noise level."""

from torch import Tensor

from .flow import shift_sigma

_RESTORATION_TAU = 4.0


def cfg(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Mix the denoised of two prompts: negative + scale*(positive - negative) (Ho and Salimans 2022).

    Velocities mix the same way, with the same result.

    Args:
        positive: denoised latents under the prompt.
        negative: denoised latents under the negative prompt, same shape.
        scale: 1 gives positive, above 1 moves away from negative.

    Returns:
        Guided latents, same shape.
    """
    return negative + scale * (positive - negative)


def cfg_scale_at(sigma: float, scale_start: float, scale_end: float, window: tuple[float, float] = (1.0, 0.0)) -> float:
    """Return the CFG scale at a noise level: scale_start at sigma 1, linearly to scale_end at sigma 0 (SUPIR).

    Args:
        sigma: current noise level in [0, 1].
        scale_start, scale_end: as above.
        window: highest and lowest level with guidance, both included (Kynkäänniemi et al. 2024, "Applying guidance in
            a limited interval"); from `percent_to_sigma`.

    Returns:
        The scale; 1 outside the window, where the negative prompt need not run.
    """
    highest, lowest = window
    return scale_end + (scale_start - scale_end) * sigma if lowest <= sigma <= highest else 1.0


def needs_negative(scale: float) -> bool:
    """Tell whether a CFG scale uses the negative prompt at all; at 1 its model call can be saved."""
    return abs(scale - 1.0) > 1e-6


def restoration_guidance(
    denoised: Tensor, lr_latents: Tensor, sigma: float, fidelity: float, sigma_max: float = 1.0
) -> Tensor:
    """Pull the denoised towards the LR latents while noise is high: x0 - w*(x0 - z_LR) (SUPIR Eq. 3).

    w = fidelity * (sigma/sigma_max)^4. SUPIR's dial is the exponent, which is never off and runs backwards; here
    the exponent keeps its default and the dial is the strength: the pull grows evenly with it, on layout and colour
    first, and at sigma 0.5 has faded to 1/16 of its start, so that details stay the model's.

    Args:
        denoised: latents [B, C, H, W].
        lr_latents: latents of the LR image, same shape.
        sigma: current noise level in [0, 1].
        fidelity: in [0, 1]; 0 is off (generative, denoised itself comes back), 1 starts at the LR image itself.
        sigma_max: the schedule's first sigma.

    Returns:
        Guided latents, same shape.

    Raises:
        ValueError: fidelity is outside [0, 1].
    """
    if not 0 <= fidelity <= 1:
        raise ValueError(f"expected fidelity in [0, 1], got {fidelity}; 0 is generative, 1 closest to the LR image")
    if fidelity == 0:
        return denoised
    weight = fidelity * min(sigma / sigma_max, 1.0) ** _RESTORATION_TAU
    return denoised - weight * (denoised - lr_latents)


def percent_to_sigma(percent: float, shift: float) -> float:
    """Turn a fraction of the sampling into a noise level, as ComfyUI does for start and end percent.

    Args:
        percent: 0 is the start (sigma 1), 1 the end (sigma 0); values outside are clipped.
        shift: the schedule's.

    Returns:
        Sigma in [0, 1].
    """
    return shift_sigma(1.0 - min(max(percent, 0.0), 1.0), shift)


def control_scale_at(sigma: float, control_scale: float, sigma_start: float, sigma_end: float) -> float:
    """Return the control's strength at a noise level: control_scale within its range, 0 outside.

    Args:
        sigma: current noise level in [0, 1].
        control_scale: strength while active.
        sigma_start: highest active level, included; from `percent_to_sigma`.
        sigma_end: lowest active level, included.

    Returns:
        control_scale or 0.0; at 0.0 the control need not run.
    """
    return control_scale if sigma_end <= sigma <= sigma_start else 0.0
