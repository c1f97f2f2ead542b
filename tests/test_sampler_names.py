"""A sampler and a schedule by name, as other programs write them too; and what has no effect is refused."""

import math

import pytest

from sdlora.errors import SdloraError
from sdlora.generation.samplers import method


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
