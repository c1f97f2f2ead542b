"""A sampler at work: the denoiser, a schedule and noise in; x at σ₀ → x at 0.

The state is x = x₀ + σ n (variance exploding), in fp32 throughout; the network sees x / √(σ² + 1) and a fractional timestep. These
are the semantics of k-diffusion and AUTOMATIC1111.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sdlora.generation.samplers import Method, Noise
from sdlora.generation.schedules import Schedule

Denoise = Callable[[Tensor, float, float], Tensor]  # (x, σ, t) -> the estimate of x₀


def beginning(method: Method, noise: Tensor, sigma: float) -> Tensor:
    """What a picture from noise is at its first level: σ n; for samplers that keep variance 1, n in their way, which is √(σ² + 1) n.

    So do k-diffusion's and AUTOMATIC1111's samplers, and the latter's DDIM and UniPC; diffusers has DDIM the same.
    """
    return noise * ((sigma**2 + 1) ** 0.5 if method.sampler.preserving else sigma)


@dataclass(frozen=True, eq=False)
class State:
    """Where a batch stands after one step; what a callback is given."""

    step: int  # 1 … steps
    steps: int
    x: Tensor  # (n, 4, h, w) fp32
    denoised: Tensor  # the estimate of x₀ that the step followed


def sample(
    method: Method, denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise, callback: Callable[[State], None] | None = None
) -> Tensor:
    """x at σ₀ → x at 0 by `method`; `noise`, from any device, is asked only by samplers that add some.

    DDIM and UniPC, whose own latents are √ᾱ x, end on the lowest training level and give what is there in their way: √ᾱ₀ x.
    """

    def model(x: Tensor, sigma: float) -> Tensor:
        return denoise(x, sigma, schedule.timestep(sigma))

    sigmas = schedule.sigmas.tolist()
    if method.sampler.preserving and 1.001 * schedule.lowest < sigmas[-2]:  # a schedule that ends there itself goes on to 0
        sigmas[-1] = schedule.lowest
    walk = method.sampler.run(model, x, sigmas, lambda *step: noise(*step).to(x.device), **dict(method.options))
    for step, (latents, denoised) in enumerate(walk, start=1):
        if callback:
            callback(State(step, len(sigmas) - 1, latents, denoised))
    return latents / (sigmas[-1] ** 2 + 1) ** 0.5 if sigmas[-1] else latents
