"""The noise schedule: betas → ᾱ, and ᾱ that ends in pure noise."""

import torch
from torch import Tensor

from sdlora.errors import SdloraError, nearest


def alphas_bar(start: float = 0.00085, end: float = 0.012, kind: str = "scaled_linear", steps: int = 1000) -> Tensor:
    """ᾱ_t = ∏ (1 − β_s), shape (steps,), fp32.  Ho et al. 2020, arXiv:2006.11239, eq. 4.

    "scaled_linear" (Stable Diffusion): √β is linear from √start to √end. "linear": β is. In fp32 as in diffusers, so
    that both give the same numbers.
    """
    match kind:
        case "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
        case "linear":
            betas = torch.linspace(start, end, steps, dtype=torch.float32)
        case _:
            raise SdloraError(f"unknown beta schedule {kind!r}{nearest(kind, ('scaled_linear', 'linear'))}")
    return (1 - betas).cumprod(0)


def zero_terminal(alphas_bar: Tensor) -> Tensor:
    """ᾱ shifted and scaled so that its last entry is 0 and its first stays.  Lin et al. 2023, arXiv:2305.08891, algorithm 1."""
    root = alphas_bar.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))).square()
