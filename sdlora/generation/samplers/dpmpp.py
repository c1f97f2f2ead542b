"""DPM-Solver++ in log σ: 2S ancestral and 2M, and their stochastic forms SDE, 2M SDE and 3M SDE.

Lu et al. 2022, arXiv:2211.01095; the stochastic forms are k-diffusion's. h is the step in λ = −ln σ.
"""

import math
from itertools import pairwise

from torch import Tensor

from sdlora.generation.samplers.step import Model, Noise, Sigmas, Steps, ancestral, towards


def dpmpp_2s_ancestral(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """Two calls a step: the estimate of x₀ at the middle of the step in λ serves the whole of it."""
    for sigma, after in pairwise(sigmas):
        denoised = better = model(x, sigma)
        down, up = ancestral(sigma, after, eta)
        if down > 0:
            middle = (sigma * down) ** 0.5
            better = model(towards(x, denoised, middle / sigma), middle)
        x = towards(x, better, down / sigma)
        if up > 0:
            x = x + noise(sigma, after) * (s_noise * up)
        yield x, denoised


def dpmpp_2m(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Steps:
    """One call a step: the estimate is extrapolated from this one and the one before; the step to 0 takes it as it is."""
    before: Tensor | None = None
    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        denoised = better = model(x, sigma)
        if before is not None and after > 0:
            r = math.log(sigmas[i - 1] / sigma) / math.log(sigma / after)
            better = denoised + (denoised - before) / (2 * r)
        x, before = towards(x, better, after / sigma), denoised
        yield x, denoised


def dpmpp_sde(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """k-diffusion's sample_dpmpp_sde with r = ½: two calls and two draws a step, to its middle in λ and over the whole."""
    for sigma, after in pairwise(sigmas):
        denoised = better = model(x, sigma)
        if after > 0:
            middle = (sigma * after) ** 0.5
            better = model(_leap(x, denoised, sigma, middle, noise, eta, s_noise), middle)
        x = _leap(x, better, sigma, after, noise, eta, s_noise)
        yield x, denoised


def dpmpp_2m_sde(
    model: Model, x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0, heun: bool = False
) -> Steps:
    """k-diffusion's sample_dpmpp_2m_sde, "midpoint" or "heun"."""
    before, h_before = x, 0.0  # 0: there is none yet
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma)
        if after == 0:
            yield denoised, denoised
            return
        h = math.log(sigma / after)
        far = h * (1 + eta)
        x = towards(x, denoised, math.exp(-far))
        if h_before:
            weight = 1 + math.expm1(-far) / far if heun else -math.expm1(-far) / 2
            x = x + (denoised - before) * (weight * h / h_before)
        x = _noised(x, sigma, after, noise, eta * h, s_noise)
        before, h_before = denoised, h
        yield x, denoised


def dpmpp_3m_sde(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """k-diffusion's sample_dpmpp_3m_sde: third order from the last three estimates."""
    past: list[tuple[Tensor, float]] = []  # (estimate, the h of its step), the latest first
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma)
        if after == 0:
            yield denoised, denoised
            return
        h = math.log(sigma / after)
        far = h * (1 + eta)
        x = towards(x, denoised, math.exp(-far)) + _higher_orders(denoised, past, h, far)
        x = _noised(x, sigma, after, noise, eta * h, s_noise)
        past = [(denoised, h), *past[:1]]
        yield x, denoised


def _higher_orders(denoised: Tensor, past: list[tuple[Tensor, float]], h: float, far: float) -> Tensor | float:
    """What the first and second differences of the estimates add, as far as there are enough of them."""
    if not past:
        return 0.0
    phi_2 = math.expm1(-far) / far + 1
    one, h_1 = past[0]
    r = h_1 / h
    first = (denoised - one) / r
    if len(past) == 1:
        return phi_2 * first
    two, h_2 = past[1]
    s = h_2 / h
    second = (first - (one - two) / s) / (r + s)
    return phi_2 * (first + second * r) - (phi_2 / far - 0.5) * second


def _leap(x: Tensor, denoised: Tensor, sigma: float, after: float, noise: Noise, eta: float, s_noise: float) -> Tensor:
    """Down to σ_down with `denoised`, and up again with noise."""
    down, up = ancestral(sigma, after, eta)
    x = towards(x, denoised, down / sigma)
    return x + noise(sigma, after) * (s_noise * up) if up > 0 else x


def _noised(x: Tensor, sigma: float, after: float, noise: Noise, eta_h: float, s_noise: float) -> Tensor:
    if eta_h == 0:
        return x
    return x + noise(sigma, after) * (s_noise * after * (-math.expm1(-2 * eta_h)) ** 0.5)
