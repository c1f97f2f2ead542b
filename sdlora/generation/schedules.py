"""Which noise levels a sampler visits: n steps down the training levels σ_t = √((1 − ᾱ_t) / ᾱ_t), and then 0.

A schedule is defined either by its timesteps or by its σ; the other follows by linear interpolation of ln σ over t, as in
k-diffusion's DiscreteSchedule. The source of each definition is in its function's docstring.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdlora.errors import SdloraError, nearest

MOST = 100_000  # noise levels; closer ones fp32 hardly tells apart
LEAST_BAR = 2.0**-24  # stands for ᾱ_T = 0, so that σ stays finite: 4096 as in diffusers (AUTOMATIC1111 and ComfyUI: 4519)


@dataclass(frozen=True, eq=False)
class Schedule:
    timesteps: Tensor  # (n,) fp32, falling, fractional
    sigmas: Tensor  # (n + 1,) fp32, falling, the last one 0
    levels: Tensor  # (T,) fp64, ln σ of the training levels, rising

    def timestep(self, sigma: float) -> float:
        """The timestep of any σ: the schedule's own where it has this level, else interpolated, and never outside 0 … T − 1."""
        t = self._own.get(sigma)
        return timestep_of(sigma, self._levels) if t is None else t

    def behind(self, skipped: int) -> "Schedule":
        """Without its first levels."""
        return Schedule(self.timesteps[skipped:], self.sigmas[skipped:], self.levels)

    @property
    def lowest(self) -> float:
        """σ of the lowest training level; 0.029 for Stable Diffusion."""
        return self.levels[0].exp().item()

    @cached_property
    def _own(self) -> dict[float, float]:
        return dict(zip(self.sigmas.tolist(), self.timesteps.tolist(), strict=False))

    @cached_property
    def _levels(self) -> list[float]:
        return self.levels.tolist()


def schedule(name: str, alphas_bar: Tensor, steps: int, discard: bool = False) -> Schedule:
    """`steps` noise levels and 0.  `discard`: one level more, and the last one before 0 is left out (as DPM2 wants it).

    SdloraError for an unknown name, and where the schedule does not have that many different levels.
    """
    if steps > MOST:
        raise SdloraError(f"steps is {steps:,}; a schedule has at most {MOST:,} noise levels; ask for fewer steps")
    levels = ((1 - alphas_bar.double()) / alphas_bar.double().clamp(min=LEAST_BAR)).log() / 2
    n, few = steps + discard, f"steps is {steps}; the schedule {name} does not have that many noise levels; ask for fewer steps"
    if name in BY_TIMESTEP:
        t = BY_TIMESTEP[name](len(levels), n)
        if t[0] > len(levels) - 1:
            raise SdloraError(few)
        sigmas = sigma_at(t, levels)
    else:
        low, high = levels[0].exp().item(), levels[-1].exp().item()
        sigmas = BY_SIGMA[schedule_name(name)](low, high, n)
        known = levels.tolist()
        t = torch.tensor([timestep_of(sigma, known) for sigma in sigmas.tolist()], dtype=torch.float64)
    if discard:
        t, sigmas = t[:-1], sigmas[:-1]
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).float()
    if not (sigmas.diff() < 0).all():
        raise SdloraError(few)
    return Schedule(t.float(), sigmas, levels)


def schedule_name(text: str) -> str:
    """ "Karras", "SGM Uniform", "normal" -> "karras", "sgm_uniform", "uniform"; SdloraError for what is none."""
    short = _short(text)
    names = {_short(name): name for name in (*BY_TIMESTEP, *BY_SIGMA)} | ALIASES
    if short not in names:
        raise SdloraError(f"unknown schedule {text!r}{nearest(text.lower(), ['automatic', *BY_TIMESTEP, *BY_SIGMA])}")
    return names[short]


def sigma_at(t: Tensor, levels: Tensor) -> Tensor:
    """σ at fractional timesteps."""
    return torch.lerp(levels[t.floor().long()], levels[t.ceil().long()], t.frac()).exp()


def timestep_of(sigma: float, levels: list[float]) -> float:
    """The inverse of sigma_at, for σ > 0; beyond the training levels 0 or T − 1."""
    log = torch.tensor(sigma, dtype=torch.float64).log().item()
    below = min(max(bisect_right(levels, log) - 1, 0), len(levels) - 2)
    fraction = (log - levels[below]) / (levels[below + 1] - levels[below])
    return below + min(max(fraction, 0.0), 1.0)


def uniform(training: int, n: int) -> Tensor:
    """Timesteps evenly from T − 1 to 0.  k-diffusion's DiscreteSchedule.get_sigmas; "Uniform" of AUTOMATIC1111, "normal" of ComfyUI.

    diffusers' timestep_spacing="linspace" interpolates σ itself: 1.5e-5 apart at n = 20.
    """
    return torch.linspace(training - 1, 0, n, dtype=torch.float64)


def sgm_uniform(training: int, n: int) -> Tensor:
    """Like uniform with n + 1 timesteps, without the last.  AUTOMATIC1111's and ComfyUI's definition."""
    return torch.linspace(training - 1, 0, n + 1, dtype=torch.float64)[:-1]


def simple(training: int, n: int) -> Tensor:
    """Every (T / n)-th training level from the top.  ComfyUI's definition; diffusers' "trailing" where n divides T."""
    return torch.tensor([training - 1 - int(i * (training / n)) for i in range(n)], dtype=torch.float64)


def ddim(training: int, n: int) -> Tensor:
    """Multiples of T // n, plus 1.  diffusers' DDIMScheduler with timestep_spacing="leading", steps_offset=1 (Stable Diffusion's)."""
    return (torch.arange(n, dtype=torch.float64) * (training // n) + 1).flip(0)


def lcm(training: int, n: int) -> Tensor:
    """n of the 50 levels that latent consistency models are distilled at.  diffusers' LCMScheduler; Luo et al. 2023, arXiv:2310.04378."""
    distilled = torch.arange(50, 0, -1, dtype=torch.float64) * (training // 50) - 1
    return distilled[[int(i * 50 / n) for i in range(n)]]


def beta_timesteps(training: int, n: int) -> Tensor:
    """Quantiles of B(0.6, 0.6) among the timesteps.  Lee et al. 2024, arXiv:2407.12173; ComfyUI's "beta"."""
    quantiles = _beta_quantiles(1 - torch.arange(n, dtype=torch.float64) / n)
    return (quantiles * (training - 1)).round()


def karras(low: float, high: float, n: int) -> Tensor:
    """σ^(1/ρ) evenly, ρ = 7.  Karras et al. 2022, arXiv:2206.00364, eq. 5; k-diffusion's get_sigmas_karras."""
    return torch.linspace(high ** (1 / 7), low ** (1 / 7), n, dtype=torch.float64) ** 7


def exponential(low: float, high: float, n: int) -> Tensor:
    """ln σ evenly.  k-diffusion's get_sigmas_exponential."""
    return torch.linspace(torch.tensor(high).log().item(), torch.tensor(low).log().item(), n, dtype=torch.float64).exp()


def beta(low: float, high: float, n: int) -> Tensor:
    """Quantiles of B(0.6, 0.6) between the outermost σ: what diffusers (use_beta_sigmas) and AUTOMATIC1111 call beta.

    With 12 steps it leaps from σ = 0.5 to 0.03, where multistep samplers of higher order fail; beta_timesteps does not.
    """
    return low + _beta_quantiles(torch.linspace(1, 0, n, dtype=torch.float64)) * (high - low)


BY_TIMESTEP: dict[str, Callable[[int, int], Tensor]] = {  # (T, n) -> (n,) timesteps
    "uniform": uniform,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim": ddim,
    "lcm": lcm,
    "beta_timesteps": beta_timesteps,
}
BY_SIGMA: dict[str, Callable[[float, float, int], Tensor]] = {  # (σ_min, σ_max, n) -> (n,) σ
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
}
ALIASES = {"normal": "uniform", "ddimuniform": "ddim"}


def _beta_quantiles(at: Tensor) -> Tensor:
    from scipy.stats import beta as distribution  # half a second to import

    return torch.from_numpy(distribution.ppf(at.numpy(), 0.6, 0.6))


def _short(text: str) -> str:
    return re.sub(r"[\s_-]", "", text.lower())
