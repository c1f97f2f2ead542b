"""How far a prediction is from what was wanted, number by number; and at which distance a robust error turns from square to straight."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdlora.errors import SdloraError, nearest


def squared(d: Tensor, c: Tensor | None = None) -> Tensor:
    return d.square()


def absolute(d: Tensor, c: Tensor | None = None) -> Tensor:
    return d.abs()


def huber(d: Tensor, c: Tensor | None) -> Tensor:
    """2c (√(d² + c²) − c): d² for |d| ≪ c, 2c|d| beyond.  Pseudo-Huber with kohya's factor; Khrapov et al. 2024, arXiv:2403.16728."""
    assert c is not None
    return 2 * c * _bowl(d, c)


def smooth_l1(d: Tensor, c: Tensor | None) -> Tensor:
    """2 (√(d² + c²) − c): d²/c for |d| ≪ c, 2|d| beyond.  The same bowl with a slope that does not depend on c; kohya's definition."""
    assert c is not None
    return 2 * _bowl(d, c)


def _bowl(d: Tensor, c: Tensor) -> Tensor:
    """√(d² + c²) − c, as d² / (√(d² + c²) + c): the difference would lose all digits of a small d in fp32."""
    return d.square() / ((d.square() + c.square()).sqrt() + c)


ERRORS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"mse": squared, "l1": absolute, "huber": huber, "smooth_l1": smooth_l1}
ROBUST = ("huber", "smooth_l1")  # those with a threshold c


def error(kind: str, d: Tensor, c: Tensor | None = None) -> Tensor:
    """The error of each number of d (n, …), shaped like it. `c` (n,): each sample's threshold, for ROBUST ones."""
    if kind not in ERRORS:
        raise SdloraError(f"unknown loss {kind!r}{nearest(kind, ERRORS)}")
    return ERRORS[kind](d, None if c is None else c.to(d.dtype).view(-1, *(1,) * (d.dim() - 1)))


def constant(c: float, scale: float, share: Tensor, alphas_bar: Tensor) -> Tensor:
    return torch.full_like(alphas_bar, c * scale)


def exponential(c: float, scale: float, share: Tensor, alphas_bar: Tensor) -> Tensor:
    """s · c^(t/T): from s at the picture to s · c at pure noise (c < 1).  arXiv:2403.16728."""
    return (math.log(c) * share.to(alphas_bar.dtype)).exp() * scale


def by_snr(c: float, scale: float, share: Tensor, alphas_bar: Tensor) -> Tensor:
    """(1 − c) / (1 + σ)² + c with σ = √((1 − ᾱ) / ᾱ): from 1 at the picture to c at pure noise.  arXiv:2403.16728.

    1 / (1 + σ) is computed as √ᾱ / (√ᾱ + √(1 − ᾱ)), which ᾱ = 0 does not disturb.
    """
    signal, noise = alphas_bar.sqrt(), (1 - alphas_bar).sqrt()
    return (1 - c) * (signal / (signal + noise)).square() + c


THRESHOLDS: dict[str, Callable[[float, float, Tensor, Tensor], Tensor]] = {"snr": by_snr, "exponential": exponential, "constant": constant}


def threshold(schedule: str, c: float, share: Tensor, alphas_bar: Tensor, scale: float = 1.0) -> Tensor:
    """c of each sample, (n,): `share` is t / T, `alphas_bar` its ᾱ. kohya's three schedules; "snr" knows no scale there either."""
    if schedule not in THRESHOLDS:
        raise SdloraError(f"unknown schedule of the threshold {schedule!r}{nearest(schedule, THRESHOLDS)}")
    return THRESHOLDS[schedule](c, scale, share, alphas_bar)
