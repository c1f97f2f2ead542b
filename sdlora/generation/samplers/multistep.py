"""Linear multistep (Adams–Bashforth) over σ, and UniPC over ln σ: one call of the model a step."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from sdlora.generation.samplers.step import Model, Noise, Sigmas, Steps, towards

GAUSS = ((1 - 3**-0.5) / 2, (1 + 3**-0.5) / 2)  # nodes on 0 … 1, each of weight ½: exact for cubic polynomials


def lms(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Steps:
    """Of order 4 as soon as there are four slopes.  k-diffusion's sample_lms, with the coefficients' integrals exact."""
    slopes: list[Tensor] = []  # the latest first
    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        nodes = [sigmas[i - k] for k in range(len(slopes))]
        steps = [weight * slope for weight, slope in zip(adams_bashforth(nodes, after), slopes, strict=True)]
        x = x + sum(steps[-2::-1], start=steps[-1])  # the smallest first, and x, which is large, rounded once
        yield x, denoised


def adams_bashforth(nodes: Sequence[float], end: float) -> list[float]:
    """∫ from nodes[0] to `end` of each node's Lagrange polynomial; at most four nodes."""
    start = nodes[0]
    points = [start + (end - start) * g for g in GAUSS]

    def lagrange(j: int, at: float) -> float:
        return math.prod((at - other) / (nodes[j] - other) for k, other in enumerate(nodes) if k != j)

    return [sum(lagrange(j, at) for at in points) * (end - start) / 2 for j in range(len(nodes))]


def unipc(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise, *, order: int = 3, variant: str = "bh1") -> Steps:
    """Zhao et al. 2023, arXiv:2302.04867, algorithms 7 and 8, predicting x₀: each call corrects the step that led to it, too.

    Order 3 and B₁(h) are AUTOMATIC1111's and ComfyUI's; diffusers' UniPCMultistepScheduler starts from order 2 and "bh2", which
    `order` and `variant` give. The order falls to 1 towards the end.
    """
    last, past = x, list[tuple[float, Tensor]]()  # x before the step; (σ, estimate), the latest first
    reach = 0  # the order of the step before
    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        if reach:
            x = _united(last, past[:reach], sigma, variant, denoised)
        past = [(sigma, denoised), *past[: order - 1]]
        reach = min(i + 1, order, len(sigmas) - 1 - i)
        last, x = x, _united(x, past[:reach], after, variant)
        yield x, denoised


def _united(x: Tensor, past: Sequence[tuple[float, Tensor]], after: float, variant: str, new: Tensor | None = None) -> Tensor:
    """From past[0]'s σ to `after`: UniP, or UniC where the estimate `new` at `after` is known already.  Equation 9 in x₀."""
    (sigma, denoised), older = past[0], past[1:]
    base = towards(x, denoised, after / sigma)
    if not older and new is None:
        return base
    h = math.log(sigma / after)
    ratios = [math.log(sigma / s) / h for s, _ in older]
    differences = [(estimate - denoised) / r for r, (_, estimate) in zip(ratios, older, strict=True)]
    if new is not None:
        ratios, differences = [*ratios, 1.0], [*differences, new - denoised]
    size = -h if variant == "bh1" else math.expm1(-h)
    for weight, difference in zip(_weights(ratios, h, size), differences, strict=True):
        base = base - size * weight * difference
    return base


def _weights(ratios: Sequence[float], h: float, size: float) -> list[float]:
    """ρ with Σ ρ_k r_k^(i−1) = i! φ_{i+1}(−h) (−h) / B(h) for i = 1 … p; for one unknown ½, as the authors simplify."""
    if len(ratios) == 1:
        return [0.5]
    phi, right = math.expm1(-h) / -h - 1, []
    for i in range(1, len(ratios) + 1):
        right.append(phi * math.factorial(i) / size)
        phi = phi / -h - 1 / math.factorial(i + 1)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, right).tolist()
