"""Every sampler against k-diffusion's or diffusers' own, step for step with the same noise."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, UniPCMultistepScheduler
from k_diffusion_oracle import sampling as kd
from walks import BAR, Draws, begin, denoise, error, ours

from sdlora.generation.sampler import sample
from sdlora.generation.samplers import SAMPLERS, method
from sdlora.generation.samplers.multistep import unipc
from sdlora.generation.schedules import Schedule, schedule


def theirs_denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return denoise(x, sigma.view(-1, 1, 1, 1))


KD: dict[str, tuple[Callable, dict]] = {
    "Euler": (kd.sample_euler, {}),
    "Euler a": (kd.sample_euler_ancestral, {}),
    "Heun": (kd.sample_heun, {}),
    "LMS": (kd.sample_lms, {}),
    "DPM2": (kd.sample_dpm_2, {}),
    "DPM2 a": (kd.sample_dpm_2_ancestral, {}),
    "DPM++ 2S a": (kd.sample_dpmpp_2s_ancestral, {}),
    "DPM++ 2M": (kd.sample_dpmpp_2m, {}),
    "DPM++ SDE": (kd.sample_dpmpp_sde, {}),
    "DPM++ 2M SDE": (kd.sample_dpmpp_2m_sde, {}),
    "DPM++ 2M SDE Heun": (kd.sample_dpmpp_2m_sde, {"solver_type": "heun"}),
    "DPM++ 3M SDE": (kd.sample_dpmpp_3m_sde, {}),
}
CASES = [
    (name, options)
    for name in KD
    for options in (
        {},
        {"eta": 0.0},
        {"eta": 0.6, "s_noise": 1.1},
        {"eta": 1.0, "s_noise": 0.9},
        {"s_churn": 8.0, "s_noise": 1.003},
        {"s_churn": 20.0, "s_tmin": 0.05, "s_tmax": 5.0},
    )
    if options.keys() <= SAMPLERS[name].options.keys()
]


def theirs(name: str, sigmas: torch.Tensor, monkeypatch: pytest.MonkeyPatch, **options) -> torch.Tensor:
    function, fixed = KD[name]
    draws = Draws(sigmas.dtype)
    monkeypatch.setattr(torch, "randn_like", draws)  # where Euler, Heun and DPM2 take theirs from
    source = {"noise_sampler": draws} if "eta" in SAMPLERS[name].options else {}
    return function(theirs_denoise, begin(sigmas), sigmas, disable=True, **source, **fixed, **options)


WALKS = [("uniform", 12), ("uniform", 30), ("karras", 12), ("exponential", 30)]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_it_is_k_diffusions(name: str, options: dict, monkeypatch: pytest.MonkeyPatch):
    """In fp64 to 1e-12 of numbers about 1; in fp32 no further from the fp64 than k-diffusion's fp32 is, but for rounding.

    Of either fp32 it is up to 1.1e-6 of the picture's norm (LMS and DPM++ 3M SDE extrapolate, which enlarges how the model rounds); which
    of the two is nearer is chance, and other kernels' tanh rounds otherwise: so there is a factor of two.
    """
    for levels, steps in WALKS:
        sigmas = schedule(levels, BAR, steps).sigmas
        exact, single = (theirs(name, s, monkeypatch, **options) for s in (sigmas.double(), sigmas))
        torch.testing.assert_close(ours(name, sigmas.double(), **options), exact, rtol=0, atol=1e-12)
        assert error(ours(name, sigmas, **options), exact) < 2 * max(error(single, exact), 1e-6)


@pytest.mark.parametrize("name", ["DDIM", "UniPC", "LCM"])
def test_those_that_diffusers_defines_are_in_fp32_what_they_are_in_fp64(name: str):
    """To 2e-6 of the picture's norm, five times what is measured; in fp64 they are diffusers', below."""
    for levels, steps in [(SAMPLERS[name].schedule, 12), (SAMPLERS[name].schedule, 30), ("karras", 30)]:
        sigmas = schedule(levels, BAR, steps).sigmas
        assert error(ours(name, sigmas), ours(name, sigmas.double())) < 2e-6


def test_every_sampler_has_an_oracle_and_every_option_a_case():
    assert SAMPLERS.keys() == KD.keys() | {"DDIM", "UniPC", "LCM"}
    assert {(name, option) for name, options in CASES for option in options} == {(n, o) for n in KD for o in SAMPLERS[n].options}


def diffusers_walk(scheduler, start: torch.Tensor, draws: Draws | None = None, **settings) -> torch.Tensor:
    """x at the end by a diffusers scheduler whose timesteps and σ are set; `start` = x₀ + σ n, as ours. The model is asked for ε."""
    bar = scheduler.alphas_cumprod.to(start.dtype)
    levels = getattr(scheduler, "sigmas", None)  # a scheduler without works at its integer timesteps
    sigmas = ((1 - bar) / bar).sqrt()[scheduler.timesteps] if levels is None else levels
    x = start / (1 + sigmas[0] ** 2).sqrt()  # diffusers' state is √ᾱ x₀ + √(1 − ᾱ) n
    for i, t in enumerate(scheduler.timesteps):
        wide = x * (1 + sigmas[i] ** 2).sqrt()
        x = scheduler.step((wide - denoise(wide, sigmas[i])) / sigmas[i], t, x, **settings).prev_sample
    return x if levels is None else x * (1 + levels[-1] ** 2).sqrt()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize(("order", "variant"), [(3, "bh1"), (3, "bh2"), (2, "bh2"), (2, "bh1"), (1, "bh1")])
def test_unipc_is_diffusers(order: int, variant: str, steps: int):
    theirs = UniPCMultistepScheduler(solver_order=order, solver_type=variant, beta_schedule="scaled_linear")
    theirs.set_timesteps(steps)
    sigmas = schedule("karras", BAR, steps).sigmas.double()
    if variant == "bh1":
        sigmas[-1] = 0.01  # diffusers' step to 0 is NaN with bh1
    theirs.sigmas, theirs.timesteps = sigmas, torch.arange(steps).flip(0)  # the timesteps are labels here
    *_, (x, _) = unipc(denoise, begin(sigmas), sigmas.tolist(), Draws(sigmas.dtype), order=order, variant=variant)
    torch.testing.assert_close(x, diffusers_walk(theirs, begin(sigmas)), rtol=0, atol=1e-12)


def walked(name: str, sigmas: Schedule, **options) -> torch.Tensor:
    """What `sample` makes of the same start as the others, in fp64, told of everything but the timestep."""
    return sample(
        method(name, "automatic", options), lambda x, sigma, t: denoise(x, sigma), begin(sigmas.sigmas), sigmas, Draws(torch.float64)
    )


@pytest.mark.parametrize("steps", [1, 4, 10, 25])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_diffusers_with_its_schedule_down_to_the_lowest_level(eta: float, steps: int):
    """As configured for Stable Diffusion. AUTOMATIC1111's ends a step earlier, where theirs and ours have been at their last but one."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    theirs = DDIMScheduler(**settings, set_alpha_to_one=False, clip_sample=False)
    theirs.set_timesteps(steps)
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    levels = schedule("ddim", BAR, steps)
    assert levels.timesteps.tolist() == theirs.timesteps.tolist()
    levels = replace(levels, sigmas=levels.sigmas.double())
    draws, bar = Draws(torch.float64), theirs.alphas_cumprod
    x = begin(levels.sigmas) / (1 + levels.sigmas[0] ** 2).sqrt()
    for t in theirs.timesteps:
        sigma = ((1 - bar[t]) / bar[t]).sqrt()
        wide = x * (1 + sigma**2).sqrt()
        noise = draws() if eta else None
        x = theirs.step((wide - denoise(wide, sigma)) / sigma, t, x, eta=eta, variance_noise=noise).prev_sample
    assert error(walked("DDIM", levels, eta=eta), x) < 1e-6  # our σ are rounded to fp32


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_unipc_ends_on_the_lowest_level_as_a1111s_does(steps: int):
    """Its sample(t_start=None) goes from t = 1 to 1/1000 of its time, which is ᾱ_0; diffusers calls that final_sigmas_type="sigma_min"."""
    theirs = UniPCMultistepScheduler(solver_order=3, solver_type="bh1", beta_schedule="scaled_linear")
    theirs.set_timesteps(steps)
    levels = schedule("sgm_uniform", BAR, steps)
    levels = replace(levels, sigmas=levels.sigmas.double())
    sigmas = levels.sigmas.clone()
    sigmas[-1] = ((1 - BAR[0].double()) / BAR[0].double()).sqrt()
    theirs.sigmas, theirs.timesteps = sigmas, torch.arange(steps).flip(0)  # the timesteps are labels here
    found = diffusers_walk(theirs, begin(sigmas)) / (1 + sigmas[-1] ** 2).sqrt()
    torch.testing.assert_close(walked("UniPC", levels), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_is_diffusers_with_its_schedule(steps: int, monkeypatch: pytest.MonkeyPatch):
    theirs = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    theirs.set_timesteps(steps)
    levels = schedule("lcm", BAR, steps)
    assert levels.timesteps.tolist() == theirs.timesteps.tolist()
    draws, sigmas = Draws(torch.float64), levels.sigmas.double()
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: draws())
    assert error(ours("LCM", sigmas), diffusers_walk(theirs, begin(sigmas))) < 1e-6  # our σ are rounded to fp32
