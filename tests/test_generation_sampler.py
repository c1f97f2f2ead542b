"""Euler with the schedule "uniform", the default, against diffusers' scheduler and closed solutions; and the predictions."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from sdlora.generation.denoiser import clean
from sdlora.generation.sampler import Denoise, sample
from sdlora.generation.samplers import method
from sdlora.generation.schedules import Schedule, schedule
from sdlora.schedule import alphas_bar

BAR = alphas_bar()


def uniform(steps: int) -> Schedule:
    return schedule("uniform", BAR, steps)


def euler(denoise: Denoise, x: torch.Tensor, levels: Schedule) -> torch.Tensor:
    return sample(method("Euler"), denoise, x, levels, noise=lambda *_: pytest.fail("Euler draws no noise"))


def k_diffusion_sigmas(n: int) -> torch.Tensor:
    """DiscreteSchedule.get_sigmas, written down anew from the formulas: in fp32, ln σ linear in t, then 0."""
    logs = (((1 - BAR) / BAR) ** 0.5).log()
    t = torch.linspace(999, 0, n)
    w = t.frac()
    return torch.cat([((1 - w) * logs[t.floor().long()] + w * logs[t.ceil().long()]).exp(), torch.zeros(1)])


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 28, 50])
def test_the_uniform_schedule_is_k_diffusions(steps: int):
    torch.testing.assert_close(uniform(steps).sigmas, k_diffusion_sigmas(steps), rtol=1e-5, atol=0)


def test_the_schedule_runs_from_the_largest_training_level_to_zero():
    levels = uniform(20)
    assert levels.sigmas[0].item() == pytest.approx(14.6146, abs=1e-4)  # Stable Diffusion's σ_max and σ_min
    assert levels.sigmas[-2].item() == pytest.approx(0.0292, abs=1e-4)
    assert levels.sigmas[-1].item() == 0
    assert (levels.sigmas.diff() < 0).all()


@pytest.mark.parametrize("steps", [2, 10, 28])  # n − 1 divides 999: no interpolation, where the two differ by definition
def test_the_schedule_is_diffusers_linspace_at_whole_timesteps(steps: int):
    theirs = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    torch.testing.assert_close(uniform(steps).timesteps, theirs.timesteps)
    torch.testing.assert_close(uniform(steps).sigmas, theirs.sigmas, rtol=1e-5, atol=1e-6)


def test_a_perfect_denoiser_of_one_picture_ends_on_it_in_any_number_of_steps():
    target = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for steps in (1, 3, 20):
        levels = uniform(steps)
        start = target + levels.sigmas[0] * torch.ones_like(target)
        torch.testing.assert_close(euler(lambda x, sigma, t: target, start, levels), target, rtol=0, atol=1e-5)


def test_euler_converges_to_the_flow_of_a_gaussian_with_first_order():
    """For data N(0, 1), D(x; σ) = x / (1 + σ²), and the flow takes x(σ) to x(σ) / √(1 + σ²)."""

    def error(steps: int) -> float:
        sigmas = torch.linspace(10, 0, steps + 1, dtype=torch.float64)
        end = euler(
            lambda x, sigma, t: x / (1 + sigma**2), torch.ones(1, dtype=torch.float64), Schedule(sigmas[:-1], sigmas, sigmas.flip(0).log())
        )
        return abs(end.item() - 101**-0.5)

    assert error(4000) < 1e-3
    assert error(2000) / error(4000) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_either_prediction_gives_the_clean_picture_back(sigma: float):
    x0, n = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bar = 1 / (sigma**2 + 1)  # ᾱ, for which σ² = (1 − ᾱ) / ᾱ
    velocity = bar**0.5 * n - (1 - bar) ** 0.5 * x0
    torch.testing.assert_close(clean("epsilon", x0 + sigma * n, n, sigma), x0)
    torch.testing.assert_close(clean("v_prediction", x0 + sigma * n, velocity, sigma), x0)
