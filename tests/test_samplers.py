"""Every sampler against k-diffusion's or diffusers' own, step for step with the same noise, and against closed solutions."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, UniPCMultistepScheduler
from k_diffusion_oracle import sampling as kd

from sdlora.errors import SdloraError
from sdlora.generation import noise as noises
from sdlora.generation.sampler import beginning, sample
from sdlora.generation.samplers import SAMPLERS, method
from sdlora.generation.samplers.multistep import unipc
from sdlora.generation.schedules import Schedule, schedule
from sdlora.schedule import alphas_bar

BAR = alphas_bar()
SHAPE = (2, 4, 6, 6)


def denoise(x: torch.Tensor, sigma) -> torch.Tensor:
    """The exact D(x; σ) of data that are N(−0.6, 0.8²) or N(0.6, 0.8²): not linear, and different at every level."""
    within = 0.64 + sigma**2
    return (0.64 * x + sigma**2 * 0.6 * torch.tanh(0.6 * x / within)) / within


def theirs_denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return denoise(x, sigma.view(-1, 1, 1, 1))


class Draws:
    """The same normal numbers in the same order for whoever asks, in whatever way."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(11)

    def __call__(self, *_) -> torch.Tensor:
        return torch.randn(SHAPE, generator=self.generator, dtype=torch.float64).to(self.dtype)


def begin(sigmas: torch.Tensor) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(sigmas.dtype) * sigmas[0]


def ours(name: str, sigmas: torch.Tensor, **options) -> torch.Tensor:
    *_, (x, _) = SAMPLERS[name].run(denoise, begin(sigmas), sigmas.tolist(), Draws(sigmas.dtype), **options)
    return x


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


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one − other‖ / ‖other‖"""
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


WALKS = [("uniform", 12), ("uniform", 30), ("karras", 12), ("exponential", 30)]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_it_is_k_diffusions(name: str, options: dict, monkeypatch: pytest.MonkeyPatch):
    """In fp64 to 1e-12 of numbers about 1; in fp32 to 1e-6 of the picture's norm, ‖ours − theirs‖ < 1e-6 ‖theirs‖.

    The second for all but LMS and DPM++ 3M SDE with 30 steps, where k-diffusion's own fp32 is up to 1.1e-6 from its fp64: they
    extrapolate, which enlarges how the model rounds. There ours is no further from the fp64 than theirs is, and always within 1e-6.
    """
    for levels, steps in WALKS:
        sigmas = schedule(levels, BAR, steps).sigmas
        exact, single = (theirs(name, s, monkeypatch, **options) for s in (sigmas.double(), sigmas))
        torch.testing.assert_close(ours(name, sigmas.double(), **options), exact, rtol=0, atol=1e-12)
        mine = ours(name, sigmas, **options)
        assert error(mine, exact) < 1e-6
        if name in ("LMS", "DPM++ 3M SDE") and steps == 30:
            assert error(mine, single) < 1e-6 or error(mine, exact) < 1.05 * error(single, exact)
        else:
            assert error(mine, single) < 1e-6


@pytest.mark.parametrize("name", ["DDIM", "UniPC", "LCM"])
def test_those_that_diffusers_defines_are_in_fp32_what_they_are_in_fp64(name: str):
    """To 1e-6 of the picture's norm; in fp64 they are diffusers', below."""
    for levels, steps in [(SAMPLERS[name].schedule, 12), (SAMPLERS[name].schedule, 30), ("karras", 30)]:
        sigmas = schedule(levels, BAR, steps).sigmas
        assert error(ours(name, sigmas), ours(name, sigmas.double())) < 1e-6


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


@pytest.mark.parametrize("name", ["DDIM", "UniPC"])
@pytest.mark.parametrize("levels", ["uniform", "karras", "exponential"])
def test_where_the_schedule_has_the_lowest_level_itself_they_go_on_to_the_estimate(name: str, levels: str):
    target, chosen = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), schedule(levels, BAR, 5)
    x = sample(method(name, levels), lambda x, sigma, t: target, begin(chosen.sigmas), chosen, Draws(torch.float32))
    assert torch.equal(x, target)


@pytest.mark.parametrize("name", ["DDIM", "UniPC", "Euler"])
def test_a_picture_from_noise_begins_with_variance_one_in_the_samplers_own_way(name: str):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(beginning(method(name), noise, 3.0), noise * (3.0 if name == "Euler" else 10**0.5))


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


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_perfect_denoiser_of_one_picture_ends_on_it(name: str, steps: int):
    target = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    sigmas = schedule(SAMPLERS[name].schedule, BAR, steps, SAMPLERS[name].discard).sigmas
    *_, (x, estimate) = SAMPLERS[name].run(lambda x, sigma: target, begin(sigmas), sigmas.tolist(), Draws(torch.float32))
    torch.testing.assert_close(x, target, rtol=0, atol=2e-5)
    assert torch.equal(estimate, target)


ORDERS = {
    "Euler": 1,
    "DDIM": 1,
    "Heun": 2,
    "DPM2": 2,
    "DPM++ 2M": 2,
    "DPM++ 2S a": 2,
    "LMS": 2,
    "UniPC": 2,
}  # these two begin with lower orders


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_without_noise_the_error_falls_with_the_order_of_the_method(name: str, order: int):
    """For data N(0, 1), D(x; σ) = x / (1 + σ²), and the flow takes x(σ) to x · √((1 + σ'²) / (1 + σ²))."""
    options = {"eta": 0.0} if "eta" in SAMPLERS[name].options else {}

    def miss(steps: int) -> float:  # from σ = 5 to 1, evenly in ln σ: a sampler's step to 0 is of first order
        sigmas = torch.linspace(math.log(5), 0, steps + 1, dtype=torch.float64).exp().tolist()
        walk = SAMPLERS[name].run(
            lambda x, sigma: x / (1 + sigma**2), torch.ones(1, dtype=torch.float64), sigmas, Draws(torch.float64), **options
        )
        *_, (x, _) = walk
        return abs(x.item() - (2 / 26) ** 0.5)

    assert math.log2(miss(40) / miss(80)) > order - 0.35


@pytest.mark.parametrize("name", [n for n in SAMPLERS if "eta" in SAMPLERS[n].options])
def test_noise_on_the_way_keeps_the_distribution(name: str):
    """Data N(0, 1) with the exact denoiser: many samples have variance 1 again, whatever η."""
    sigmas = schedule("karras", BAR, 100).sigmas.tolist()
    streams = noises.streams([4], (20_000,))
    path = noises.between([4], (20_000,), sigmas)
    fresh = path if SAMPLERS[name].brownian else lambda *_: noises.drawn(streams)
    for eta in (0.0, 1.0):
        *_, (x, _) = SAMPLERS[name].run(lambda x, sigma: x / (1 + sigma**2), noises.drawn(streams) * sigmas[0], sigmas, fresh, eta=eta)
        assert x.var().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("source", noises.SOURCES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(name: str, source: str):
    """With the very noise that generate() gives: row i of a batch is, bit for bit, the picture of its seed alone."""
    row, seeds = SAMPLERS[name], [5, 1, 9]
    options = {"s_churn": 5.0} if "s_churn" in row.options else {"eta": 0.7} if "eta" in row.options else {}

    def walk(seeds: list[int]) -> torch.Tensor:
        levels = schedule(row.schedule, BAR, 4, row.discard)
        sigmas, streams = levels.sigmas.tolist(), noises.streams(seeds, SHAPE[1:], source)
        x = noises.drawn(streams) * sigmas[0]
        fresh = noises.between(seeds, SHAPE[1:], sigmas, source) if row.brownian else lambda *_: noises.drawn(streams)
        *_, (x, _) = row.run(denoise, x, sigmas, fresh, **options)
        return x

    together = walk(seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(walk([seed])[0], together[i])


def test_the_network_is_told_the_schedules_own_timesteps_and_interpolated_ones_between():
    levels, seen = schedule("uniform", BAR, 4), []

    def ask(x: torch.Tensor, sigma: float, t: float) -> torch.Tensor:
        seen.append(t)
        return x

    sample(method("Heun", "uniform"), ask, torch.zeros(SHAPE), levels, Draws(torch.float32))
    assert seen == [999.0, 666.0, 666.0, 333.0, 333.0, 0.0, 0.0]
    seen.clear()
    sample(method("DPM2", "uniform"), ask, torch.zeros(SHAPE), levels, Draws(torch.float32))
    assert seen[::2] == [999.0, 666.0, 333.0, 0.0] and 666 < seen[1] < 999 and seen[1] != int(seen[1])


@pytest.mark.parametrize(
    ("text", "name", "levels"),
    [
        ("euler", "Euler", "uniform"),
        ("Euler a", "Euler a", "uniform"),
        ("k_euler_a", "Euler a", "uniform"),
        ("euler_ancestral", "Euler a", "uniform"),
        ("sample_dpmpp_2s_ancestral", "DPM++ 2S a", "karras"),
        ("DPM++ 2M", "DPM++ 2M", "karras"),
        ("DPM++ 2M Karras", "DPM++ 2M", "karras"),
        ("DPM++ 2M SDE Exponential", "DPM++ 2M SDE", "exponential"),
        ("DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun", "karras"),
        ("dpm_2_ancestral", "DPM2 a", "karras"),
        ("LMS Karras", "LMS", "karras"),
        ("uni_pc", "UniPC", "sgm_uniform"),
        ("DDIM", "DDIM", "ddim"),
        ("k_lms_ka", None, None),
    ],
)
def test_names_of_other_programs_are_understood(text: str, name: str | None, levels: str | None):
    if name is None:
        with pytest.raises(SdloraError, match="unknown sampler"):
            method(text)
    else:
        found = method(text)
        assert (found.sampler.name, found.schedule) == (name, levels)
        assert method(text, found.schedule.upper()) == found  # said twice is no conflict


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Eulr a",), "unknown sampler 'Eulr a'; did you mean Euler a"),
        (("Euler", "karas"), "unknown schedule 'karas'; did you mean karras"),
        (("DPM++ 2M Karras", "beta"), "names the schedule karras, and the schedule is 'beta'"),
        (("Euler", "uniform", {"eta": 0.5}), "eta has no effect with the sampler Euler; .*Euler a"),
        (("Euler a", "uniform", {"s_churn": 5.0}), "s_churn has no effect with the sampler Euler a"),
        (("LCM", "automatic", {"s_noise": 1.0}), "s_noise has no effect with the sampler LCM"),
        (("Heun", "uniform", {"s_tmin": 1.0}), "s_tmin has no effect .* while s_churn is 0"),
        (("Euler a", "uniform", {"s_noise": 1.1, "eta": 0.0}), "s_noise has no effect .* while eta is 0"),
        (("Heun", "uniform", {"s_churn": 1.0, "s_tmin": 2.0, "s_tmax": 1.0}), "s_tmin is 2 and s_tmax 1"),
        (("Euler a", "uniform", {"eta": -1.0}), "eta is -1.0"),
        (("Euler a", "uniform", {"eta": math.nan}), "eta is nan"),
    ],
)
def test_what_is_unknown_or_without_effect_is_refused_by_name(arguments: tuple, message: str):
    with pytest.raises(SdloraError, match=message) as error:
        method(*arguments)
    assert "\n" not in str(error.value)
