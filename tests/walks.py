"""What the samplers are walked with: an exact denoiser that is not linear, a start, and the same noise for whoever asks."""

import torch

from sdlora.generation.samplers import SAMPLERS
from sdlora.schedule import alphas_bar

BAR = alphas_bar()
SHAPE = (2, 4, 6, 6)


def denoise(x: torch.Tensor, sigma) -> torch.Tensor:
    """The exact D(x; σ) of data that are N(−0.6, 0.8²) or N(0.6, 0.8²): not linear, and different at every level."""
    within = 0.64 + sigma**2
    return (0.64 * x + sigma**2 * 0.6 * torch.tanh(0.6 * x / within)) / within


class Draws:
    """The same normal numbers in the same order for whoever asks, in whatever way."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(11)

    def __call__(self, *_) -> torch.Tensor:
        return torch.randn(SHAPE, generator=self.generator, dtype=torch.float64).to(self.dtype)


def begin(sigmas: torch.Tensor) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(sigmas.dtype) * sigmas[0]


def ours(name: str, sigmas: torch.Tensor, **options) -> torch.Tensor:
    *_, (x, _) = SAMPLERS[name].run(denoise, begin(sigmas), sigmas.tolist(), Draws(sigmas.dtype), **options)
    return x


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one − other‖ / ‖other‖"""
    return ((one.double() - other.double()).norm() / other.double().norm()).item()
