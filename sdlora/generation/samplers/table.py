"""The samplers by name: what each needs and which settings it has; and from words to a Method."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from sdlora.errors import SdloraError, nearest
from sdlora.generation.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s_ancestral, dpmpp_3m_sde, dpmpp_sde
from sdlora.generation.samplers.euler import ddim, euler, euler_ancestral, lcm
from sdlora.generation.samplers.multistep import lms, unipc
from sdlora.generation.samplers.second_order import dpm2, dpm2_ancestral, heun
from sdlora.generation.samplers.step import Steps
from sdlora.generation.schedules import BY_SIGMA, BY_TIMESTEP, schedule_name

OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")  # what a sampler may have; a row's function says which it has


@dataclass(frozen=True)
class Sampler:
    name: str  # AUTOMATIC1111's
    run: Callable[..., Steps]
    schedule: str = "uniform"  # what "automatic" stands for: AUTOMATIC1111's choice, where it has one
    brownian: bool = False  # its noise belongs to intervals of σ; otherwise each draw is a new one
    renoises: bool = False  # draws new noise at every step, whatever its settings
    discard: bool = False  # leaves out the last level before 0, as AUTOMATIC1111 does for it
    preserving: bool = False  # keeps variance 1, as its paper has it: from n, not σ n, to the lowest training level, not to 0

    @property
    def options(self) -> dict[str, float]:
        """Its settings with their defaults."""
        parameters = inspect.signature(self.run).parameters
        return {name: parameters[name].default for name in OPTIONS if name in parameters}


SAMPLERS = {
    row.name: row
    for row in (
        Sampler("Euler", euler),
        Sampler("Euler a", euler_ancestral),
        Sampler("Heun", heun),
        Sampler("LMS", lms),
        Sampler("DPM2", dpm2, "karras", discard=True),
        Sampler("DPM2 a", dpm2_ancestral, "karras", discard=True),
        Sampler("DPM++ 2S a", dpmpp_2s_ancestral, "karras"),
        Sampler("DPM++ 2M", dpmpp_2m, "karras"),
        Sampler("DPM++ SDE", dpmpp_sde, "karras", brownian=True),
        Sampler("DPM++ 2M SDE", dpmpp_2m_sde, "exponential", brownian=True),
        Sampler("DPM++ 2M SDE Heun", partial(dpmpp_2m_sde, heun=True), "exponential", brownian=True),
        Sampler("DPM++ 3M SDE", dpmpp_3m_sde, "exponential", brownian=True, discard=True),
        Sampler("DDIM", ddim, "ddim", preserving=True),
        Sampler("UniPC", unipc, "sgm_uniform", preserving=True),
        Sampler("LCM", lcm, "lcm", renoises=True),
    )
}


@dataclass(frozen=True)
class Method:
    """A sampler with everything decided: requests of equal Methods can be drawn together."""

    sampler: Sampler
    schedule: str
    options: tuple[tuple[str, float], ...]  # those that were given

    @property
    def draws(self) -> bool:
        """Whether a picture's own stream of noise goes on being drawn from after the start."""
        options = self.sampler.options | dict(self.options)
        return not self.sampler.brownian and (self.sampler.renoises or max(options.get("eta", 0), options.get("s_churn", 0)) > 0)

    def __str__(self) -> str:
        return ", ".join([self.sampler.name, self.schedule, *(f"{name} {value:g}" for name, value in self.options)])


def method(sampler: str = "Euler", schedule: str = "automatic", options: Mapping[str, float | None] | None = None) -> Method:
    """From words, as people and other programs write them: "DPM++ 2M Karras", "dpmpp_2m", "k_euler_a", "euler_ancestral".

    An option of None is not given. SdloraError for unknown names, and for what would have no effect.
    """
    row, named = find(sampler)
    if schedule.lower() == "automatic":
        chosen = named or row.schedule
    else:
        chosen = schedule_name(schedule)
        if named and named != chosen:
            raise SdloraError(
                f"the sampler {sampler!r} names the schedule {named}, and the schedule is {schedule!r}; leave one of them out"
            )
    given = {name: float(value) for name, value in (options or {}).items() if value is not None}
    for name, value in given.items():
        if name not in row.options:
            users = ", ".join(s.name for s in SAMPLERS.values() if name in s.options)
            raise SdloraError(f"{name} has no effect with the sampler {row.name}; leave it out (it is a setting of {users})")
        if not (math.isfinite(value) and value >= 0):
            raise SdloraError(f"{name} is {value}; it has to be a number from 0 on")
    _refuse_ineffective(row, given)
    return Method(row, chosen, tuple(sorted(given.items())))


def find(text: str) -> tuple[Sampler, str | None]:
    """The sampler, and the schedule where the name ends in one, as AUTOMATIC1111's older names do."""
    known = {_short(name): row for name, row in SAMPLERS.items()}
    short = _short(text)
    if short in known:
        return known[short], None
    for name in (*BY_TIMESTEP, *BY_SIGMA):
        if short.endswith(_short(name)) and short.removesuffix(_short(name)) in known:
            return known[short.removesuffix(_short(name))], name
    raise SdloraError(f"unknown sampler {text!r}{_nearest(text)}")


def _refuse_ineffective(row: Sampler, given: Mapping[str, float]) -> None:
    switch = "s_churn" if "s_churn" in row.options else "eta"
    if given.get(switch, row.options.get(switch)) == 0:
        for name in given.keys() - {switch}:
            raise SdloraError(f"{name} has no effect with the sampler {row.name} while {switch} is 0; leave it out, or set {switch}")
    low, high = given.get("s_tmin", 0.0), given.get("s_tmax", math.inf)
    if low > high:
        raise SdloraError(f"s_tmin is {low:g} and s_tmax {high:g}: no noise level lies between them; s_tmin is the lower one")


def _nearest(text: str) -> str:
    lower = {name.lower(): name for name in SAMPLERS}
    end = nearest(text.lower(), lower)
    return end if end.startswith("; valid") else f"; did you mean {lower[end[len('; did you mean ') : -1]]}?"


def _short(text: str) -> str:
    """ "k_dpmpp_2s_ancestral" and "DPM++ 2S a" -> "dpmpp2sa"."""
    return re.sub(r"^(sample|k)_", "", text.lower()).replace("++", "pp").replace("ancestral", "a").translate(str.maketrans("", "", " _-"))
