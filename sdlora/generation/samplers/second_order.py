"""Second order in σ, two calls of the model a step: Heun, DPM2 and its ancestral form."""

import math
from itertools import pairwise

from torch import Tensor

from sdlora.generation.samplers.step import Model, Noise, Sigmas, Steps, ancestral, churning, towards


def heun(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Steps:
    """Karras et al. 2022, arXiv:2206.00364, algorithm 2: the mean of the slopes at both ends; the step to 0 is Euler's."""
    churn = churning(len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for sigma, after in pairwise(sigmas):
        x, sigma = churn(x, sigma)
        denoised = model(x, sigma)
        slope = (x - denoised) / sigma
        end = x + slope * (after - sigma)
        if after > 0:
            slope = (slope + (end - model(end, after)) / after) / 2
            end = x + slope * (after - sigma)
        x = end
        yield x, denoised


def dpm2(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Steps:
    """The slope at the geometric middle of the step.  k-diffusion's sample_dpm_2, after DPM-Solver-2 (arXiv:2206.00927)."""
    churn = churning(len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for sigma, after in pairwise(sigmas):
        x, sigma = churn(x, sigma)
        denoised = model(x, sigma)
        x = _midpoint(model, x, denoised, sigma, after)
        yield x, denoised


def dpm2_ancestral(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """k-diffusion's sample_dpm_2_ancestral: no noise after a step that goes down to 0."""
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma)
        down, up = ancestral(sigma, after, eta)
        x = _midpoint(model, x, denoised, sigma, down)
        if up > 0 and down > 0:
            x = x + noise(sigma, after) * (s_noise * up)
        yield x, denoised


def _midpoint(model: Model, x: Tensor, denoised: Tensor, sigma: float, after: float) -> Tensor:
    if after == 0:
        return towards(x, denoised, 0.0)
    middle = (sigma * after) ** 0.5
    half = towards(x, denoised, middle / sigma)
    return x + (half - model(half, middle)) / middle * (after - sigma)
