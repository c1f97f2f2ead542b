"""Euler's method over σ with the schedule "Uniform": the semantics of k-diffusion and AUTOMATIC1111.

The state is x = x₀ + σ n (variance exploding), in fp32 throughout; the network sees x / √(σ² + 1) and a fractional timestep.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DARKEST = 2.0**-24  # the smallest ᾱ that a schedule may start from: σ = √(2²⁴ − 1), about 4096

Denoise = Callable[[Tensor, float, float], Tensor]  # (x, σ, t) -> the estimate of x₀


@dataclass(frozen=True, eq=False)
class Schedule:
    timesteps: Tensor  # (n,) fp32, falling from T − 1 to 0, fractional
    sigmas: Tensor  # (n + 1,) fp32, falling, the last one 0


@dataclass(frozen=True, eq=False)
class State:
    """Where a batch stands after one step; what a callback is given."""

    step: int  # 1 … steps
    steps: int
    x: Tensor  # (n, 4, h, w) fp32
    denoised: Tensor  # the estimate of x₀ that the step followed


def uniform(alphas_bar: Tensor, steps: int) -> Schedule:
    """Linearly spaced timesteps T − 1 … 0; ln σ interpolated linearly between the training levels σ_t = √((1 − ᾱ_t) / ᾱ_t).

    k-diffusion's DiscreteSchedule.get_sigmas. diffusers' timestep_spacing="linspace" interpolates σ itself: 1.5e-5 apart at n = 20.
    One step starts at T − 1. Under zero-terminal SNR the last training level would be infinite; as in diffusers it is 4096.
    """
    bar = alphas_bar.double().clamp(min=DARKEST)
    logs = ((1 - bar) / bar).log() / 2
    t = torch.linspace(len(logs) - 1, 0, steps, dtype=torch.float64)
    below, above = t.floor().long(), t.ceil().long()
    sigmas = torch.lerp(logs[below], logs[above], t.frac()).exp()
    return Schedule(t.float(), torch.cat([sigmas, sigmas.new_zeros(1)]).float())


def euler(denoise: Denoise, x: Tensor, schedule: Schedule, callback: Callable[[State], None] | None = None) -> Tensor:
    """x at σ₀ -> x at 0.  Karras et al. 2022, arXiv:2206.00364, algorithm 2 without churn: dx/dσ = (x − D(x; σ)) / σ."""
    sigmas, timesteps = schedule.sigmas.tolist(), schedule.timesteps.tolist()
    for i, t in enumerate(timesteps):
        denoised = denoise(x, sigmas[i], t)
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        if callback:
            callback(State(i + 1, len(timesteps), x, denoised))
    return x
