"""Which timesteps are trained on, as quantile functions u in [0, 1) -> t: a stratified u gives stratified timesteps of any kind."""

import math

import torch
from torch import Tensor

from sdlora.errors import SdloraError, nearest

DISTRIBUTIONS = ("uniform", "logit_normal", "cosmap")


def placed(
    u: Tensor,
    total: int,
    lowest: int = 0,
    highest: int | None = None,
    distribution: str = "uniform",
    mean: float = 0.0,
    deviation: float = 1.0,
    shift: float = 1.0,
) -> Tensor:
    """Timesteps, int64, of u (fp64, uniform in [0, 1)): lowest ≤ t < highest (default `total`), 0 the picture, total − 1 the most noise.

    uniform       x = u
    logit_normal  x = 1 / (1 + e^−(m + s Φ⁻¹(u))): more of the middle; m > 0: noisier.  Esser et al. 2024, arXiv:2403.03206, sec. 3.1
    cosmap        x = 1 − 1 / (tan(π u / 2) + 1): a little more of the middle.  arXiv:2403.03206, sec. 3.1
    shift k       x → k x / (1 + (k − 1) x), after the distribution; k > 1: noisier.  arXiv:2403.03206, sec. 5.3.2
    t = ⌊lowest + x (highest − lowest)⌋
    """
    highest = total if highest is None else highest
    x = _shifted(_share(u, distribution, mean, deviation), shift)
    return (lowest + x * (highest - lowest)).long().clamp(min=lowest, max=highest - 1)


def _share(u: Tensor, distribution: str, mean: float, deviation: float) -> Tensor:
    match distribution:
        case "uniform":
            return u
        case "logit_normal":
            return torch.sigmoid(mean + deviation * torch.special.ndtri(u))
        case "cosmap":
            return 1 - 1 / ((math.pi / 2 * u).tan() + 1)
        case _:
            raise SdloraError(f"unknown distribution of timesteps {distribution!r}{nearest(distribution, DISTRIBUTIONS)}")


def _shifted(x: Tensor, k: float) -> Tensor:
    return x if k == 1 else k * x / (1 + (k - 1) * x)
