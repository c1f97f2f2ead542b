"""Every schedule against the library that defines it, and what all have in common."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from k_diffusion_oracle import external
from k_diffusion_oracle import sampling as kd
from scipy.stats import beta as distribution

from sdlora.errors import SdloraError
from sdlora.generation.schedules import BY_SIGMA, BY_TIMESTEP, schedule, schedule_name, timestep_of
from sdlora.schedule import alphas_bar, zero_terminal

BAR = alphas_bar()
LEVELS = ((1 - BAR) / BAR).sqrt()
STEPS = [1, 2, 3, 10, 20, 30]
SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MODEL = external.DiscreteSchedule(LEVELS, quantize=False)


def close(ours: torch.Tensor, theirs: torch.Tensor, rtol: float = 1e-5, atol: float = 0.0) -> None:
    """Relative: theirs, in fp32, has rounded its way through ln σ."""
    torch.testing.assert_close(ours, torch.as_tensor(theirs).float(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("steps", STEPS)
def test_uniform_karras_and_exponential_are_k_diffusions(steps: int):
    close(schedule("uniform", BAR, steps).sigmas, MODEL.get_sigmas(steps))
    low, high = LEVELS[0].item(), LEVELS[-1].item()
    close(schedule("karras", BAR, steps).sigmas, kd.get_sigmas_karras(steps, low, high))
    close(schedule("exponential", BAR, steps).sigmas, kd.get_sigmas_exponential(steps, low, high))


@pytest.mark.parametrize("steps", STEPS)
def test_sgm_uniform_is_the_definition_of_a1111_upon_k_diffusions_model(steps: int):
    """A1111's sd_schedulers.sgm_uniform: t_to_sigma of linspace(sigma_to_t(σ_max), sigma_to_t(σ_min), n + 1) without its last."""
    start, end = MODEL.sigma_to_t(LEVELS[-1]), MODEL.sigma_to_t(LEVELS[0])
    theirs = MODEL.t_to_sigma(torch.linspace(start.item(), end.item(), steps + 1)[:-1])
    close(schedule("sgm_uniform", BAR, steps).sigmas[:-1], theirs)


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 50])
def test_simple_is_diffusers_trailing_where_the_steps_divide_the_training(steps: int):
    theirs = EulerDiscreteScheduler(**SETTINGS, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    ours = schedule("simple", BAR, steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    close(ours.sigmas, theirs.sigmas)


@pytest.mark.parametrize("steps", [3, 30, 37])
def test_simple_counts_levels_from_the_top_as_a1111_and_comfyui_do(steps: int):
    theirs = [LEVELS[-(1 + int(i * (len(LEVELS) / steps)))].item() for i in range(steps)]
    close(schedule("simple", BAR, steps).sigmas, torch.tensor([*theirs, 0.0]))


@pytest.mark.parametrize("steps", STEPS[1:])  # of one step diffusers' σ_max is σ_min, because its "linspace" of one is 0
def test_beta_is_diffusers(steps: int):
    theirs = EulerDiscreteScheduler(**SETTINGS, use_beta_sigmas=True)
    theirs.set_timesteps(steps)
    close(schedule("beta", BAR, steps).sigmas, theirs.sigmas)


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 30])
def test_beta_timesteps_are_quantiles_as_comfyui_takes_them(steps: int):
    """The distribution's own integral gives the evenly spaced numbers back, to the rounding of the timesteps."""
    t = schedule("beta_timesteps", BAR, steps).timesteps.numpy()
    assert (t == t.round()).all() and t[0] == 999
    wanted = 1 - np.arange(steps) / steps
    assert (distribution.cdf((t - 0.5) / 999, 0.6, 0.6) <= wanted).all() and (distribution.cdf((t + 0.5) / 999, 0.6, 0.6) >= wanted).all()


@pytest.mark.parametrize("steps", [1, 7, 20, 30, 50])
def test_ddim_has_diffusers_timesteps(steps: int):
    theirs = DDIMScheduler(**SETTINGS, timestep_spacing="leading", steps_offset=1)
    theirs.set_timesteps(steps)
    ours = schedule("ddim", BAR, steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    close(ours.sigmas[:-1], LEVELS[theirs.timesteps])


@pytest.mark.parametrize("name", [*BY_TIMESTEP, *BY_SIGMA])
@pytest.mark.parametrize("discard", [False, True])
def test_levels_fall_to_zero_and_timesteps_belong_to_them(name: str, discard: bool):
    for steps in (1, 2, 5, 20):
        levels = schedule(name, BAR, steps, discard)
        assert (levels.timesteps.shape, levels.sigmas.shape) == ((steps,), (steps + 1,))
        assert (levels.sigmas.diff() < 0).all() and levels.sigmas[-1] == 0
        assert levels.sigmas[0] <= LEVELS[-1] * (1 + 1e-6) and levels.sigmas[-2] >= LEVELS[0] * (1 - 1e-6)
        close(levels.timesteps, MODEL.sigma_to_t(levels.sigmas[:-1]), rtol=0, atol=2e-3)
        assert [levels.timestep(sigma) for sigma in levels.sigmas[:-1].tolist()] == levels.timesteps.tolist()


def test_discard_leaves_out_the_last_level_of_one_step_more():
    with_it, without = schedule("karras", BAR, 11).sigmas, schedule("karras", BAR, 10, discard=True).sigmas
    assert torch.equal(without, torch.cat([with_it[:-2], with_it[-1:]]))


def test_a_timestep_is_the_inverse_of_a_level_and_stays_within_the_training():
    levels = LEVELS.double().log().tolist()
    sigmas = torch.linspace(0.03, 14.6, 200)
    ours = torch.tensor([timestep_of(sigma, levels) for sigma in sigmas.tolist()])
    close(ours, MODEL.sigma_to_t(sigmas), rtol=0, atol=2e-3)
    assert timestep_of(1e-3, levels) == 0 and timestep_of(500.0, levels) == 999


def test_zero_terminal_snr_is_diffusers():
    betas = 1 - BAR[1:] / BAR[:-1]
    betas = torch.cat([1 - BAR[:1], betas])
    theirs = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    ours = zero_terminal(BAR)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)
    assert ours[-1] == 0 and ours[0] == pytest.approx(BAR[0].item(), abs=1e-6)


@pytest.mark.parametrize("name", [*BY_TIMESTEP, *BY_SIGMA])
def test_with_zero_terminal_snr_every_level_stays_finite(name: str):
    levels = schedule(name, zero_terminal(BAR), 10)
    assert levels.sigmas.isfinite().all() and (levels.sigmas.diff() < 0).all()
    theirs = EulerDiscreteScheduler(**SETTINGS, rescale_betas_zero_snr=True)
    if name != "ddim":  # which never begins at the last training level
        assert levels.sigmas[0].item() == pytest.approx(theirs.sigmas[0].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("text", "name"),
    [("Karras", "karras"), ("SGM Uniform", "sgm_uniform"), ("SGMUniform", "sgm_uniform"), ("normal", "uniform"), ("ddim_uniform", "ddim")],
)
def test_schedules_have_their_names_of_other_programs(text: str, name: str):
    assert schedule_name(text) == name


def test_an_unknown_schedule_and_too_many_steps_are_one_line():
    with pytest.raises(SdloraError, match="unknown schedule 'exponentiel'; did you mean exponential"):
        schedule("exponentiel", BAR, 5)
    for name, steps in (("simple", 1001), ("ddim", 1000), ("ddim", 1001), ("lcm", 51)):
        with pytest.raises(SdloraError, match=f"steps is {steps}; the schedule {name} does not have that many noise levels"):
            schedule(name, BAR, steps)


def test_levels_without_number_are_refused_before_they_are_made():
    with pytest.raises(SdloraError, match="steps is 20,000,000,000; a schedule has at most 100,000 noise levels"):
        schedule("karras", BAR, 20_000_000_000)
