"""Noise that is not white: with an offset, or at many resolutions.

All functions are of one sample (c, h, w) and of draws that are handed in, so that no batch, worker or interruption changes them.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def offset(noise: Tensor, shift: Tensor, strength: float, latents: Tensor | None = None, adaptive: float = 0.0) -> Tensor:
    """ε + o·ξ, with ξ (c, 1, 1) normal: each channel's mean is noise of its own.  N. Guttenberg 2023, "Diffusion with offset noise".

    Adaptive, as kohya's adaptive_noise_scale: o = max(0, strength + adaptive · |mean x₀|), of each channel.
    """
    if not adaptive:
        return noise + strength * shift
    assert latents is not None
    size = latents.mean((-2, -1), keepdim=True).abs()
    return noise + (strength + adaptive * size).clamp(min=0) * shift


def sides(height: int, width: int, ratios: Sequence[float]) -> list[tuple[int, int]]:
    """The sizes of the levels: level i is 1 / rᵢⁱ as high and wide, rᵢ in [2, 4); the first level with a side of 1 is the last."""
    result = []
    for i, ratio in enumerate(ratios):
        result.append((max(1, int(height / ratio**i)), max(1, int(width / ratio**i))))
        if 1 in result[-1]:
            break
    return result


def pyramid(noise: Tensor, levels: Sequence[Tensor], discount: float) -> Tensor:
    """ε + Σ dⁱ · enlarged(ξᵢ), divided by its standard deviation; ξᵢ (c, hᵢ, wᵢ), level 0 at full size.

    J. Whitaker 2023, "Multi-resolution noise for diffusion model training", as kohya's multires_noise; he divides by the deviation
    of the whole batch, here each sample is divided by its own.
    """
    total = noise
    for i, level in enumerate(levels):
        total = total + discount**i * F.interpolate(level[None], noise.shape[-2:], mode="bilinear", align_corners=False)[0]
    return total / total.std()
