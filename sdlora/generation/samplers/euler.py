"""First order: Euler, its ancestral form, and the sampler of latent consistency models."""

import math
from itertools import pairwise

from torch import Tensor

from sdlora.generation.samplers.step import Model, Noise, Sigmas, Steps, ancestral, churning, towards


def euler(
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
    """Karras et al. 2022, arXiv:2206.00364, algorithm 2 without its correction: dx/dσ = (x − D(x; σ)) / σ."""
    churn = churning(len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
    for sigma, after in pairwise(sigmas):
        x, sigma = churn(x, sigma)
        denoised = model(x, sigma)
        x = x + (x - denoised) / sigma * (after - sigma)
        yield x, denoised


def euler_ancestral(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0) -> Steps:
    """k-diffusion's sample_euler_ancestral. In these coordinates it is DDIM (arXiv:2010.02502, eq. 12) with the same η."""
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma)
        down, up = ancestral(sigma, after, eta)
        x = towards(x, denoised, down / sigma)
        if up > 0:
            x = x + noise(sigma, after) * (s_noise * up)
        yield x, denoised


def ddim(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 0.0) -> Steps:
    """Song et al. 2020, arXiv:2010.02502, eq. 12; η = 0 is deterministic, η = 1 has the variance of DDPM.

    As diffusers has it for Stable Diffusion, the last step goes to the lowest training level, ᾱ_0. AUTOMATIC1111 leaves that step
    out: its DDIM ends on the level t = 1, after one call of the model less than it was asked for.
    """
    return euler_ancestral(model, x, sigmas, noise, eta=eta)


def lcm(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Steps:
    """To the estimate at once, and back up with fresh noise.  Luo et al. 2023, arXiv:2310.04378, algorithm 3.

    Without the boundary scalings c_skip and c_out, like ComfyUI: they are 0 and 1 to within 2e-7 for t ≥ 139, and to within 7e-6
    at the lowest distilled level, t = 19.
    """
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma)
        x = denoised + after * noise(sigma, after) if after > 0 else denoised
        yield x, denoised
