"""What every sampler is given and gives back, and the moves that several share.

A sampler is a generator function (model, x, sigmas, noise, *, options) -> Steps. `sigmas` are Python floats that fall to 0; its
arithmetic on them is fp64, and x keeps its own precision.
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

Model = Callable[[Tensor, float], Tensor]  # (x, σ) -> D(x; σ), the estimate of x₀
Noise = Callable[[float, float], Tensor]  # (σ, the next σ) -> standard normal of x's shape, as k-diffusion's noise_sampler
Sigmas = Sequence[float]
Steps = Iterator[tuple[Tensor, Tensor]]  # after each step: x, and the estimate of x₀ that it followed


def towards(x: Tensor, denoised: Tensor, ratio: float) -> Tensor:
    """x from σ to ratio · σ, where D stays as it is: the exact solution of dx/dσ = (x − D) / σ, and the first-order step."""
    return denoised + ratio * (x - denoised)


def ancestral(sigma: float, after: float, eta: float) -> tuple[float, float]:
    """(σ_down, σ_up) with σ_down² + σ_up² = after²: go down to σ_down, then add noise of σ_up.  k-diffusion's get_ancestral_step.

    The variance is that of DDIM with the same η (Song et al. 2020, arXiv:2010.02502, eq. 16), written for x = x₀ + σ n.
    """
    up = min(after, eta * after * (1 - (after / sigma) ** 2) ** 0.5)
    return (after**2 - up**2) ** 0.5, up


def churning(
    steps: int, noise: Noise, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> Callable[[Tensor, float], tuple[Tensor, float]]:
    """A function (x, σ) -> (x̂, σ̂): noise is added before a step.  Karras et al. 2022, arXiv:2206.00364, algorithm 2, lines 4 to 6.

    With s_churn above 0 noise is drawn at every step, also outside s_tmin … s_tmax: k-diffusion's order of draws.
    """

    def churn(x: Tensor, sigma: float) -> tuple[Tensor, float]:
        if s_churn == 0:
            return x, sigma
        fresh = noise(sigma, sigma)
        if not s_tmin <= sigma <= s_tmax:
            return x, sigma
        hat = sigma * (1 + min(s_churn / steps, 2**0.5 - 1))
        return x + fresh * (s_noise * (hat**2 - sigma**2) ** 0.5), hat

    return churn
