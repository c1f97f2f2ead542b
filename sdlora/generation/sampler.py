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
    """x at σ₀ → x at 0 by `method`; `noise`, from any device, is asked only by samplers that add some."""

    def model(x: Tensor, sigma: float) -> Tensor:
        return denoise(x, sigma, schedule.timestep(sigma))

    sigmas = schedule.sigmas.tolist()
    walk = method.sampler.run(model, x, sigmas, lambda *step: noise(*step).to(x.device), **dict(method.options))
    for step, (latents, denoised) in enumerate(walk, start=1):
        if callback:
            callback(State(step, len(sigmas) - 1, latents, denoised))
    return latents
