"""The learning rate as a function of the step alone."""

import math
from collections.abc import Callable

from sdlora.training.config import TrainConfig


def factor(step: int, config: TrainConfig) -> float:
    """What the learning rate is multiplied by in step `step` (from 0): a linear warm-up, then the schedule, down to its floor.

    The warm-up's first step already learns a little, and so does the schedule's last.
    """
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "inverse_sqrt":
        return math.sqrt((config.warmup + 1) / (step + 1))
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    floor = config.schedule_floor or 0.0
    return floor + (1 - floor) * FALLS[config.schedule](min(1.0, progress), config)


def cosine(p: float, config: TrainConfig) -> float:
    """Half a cosine.  Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, of one period."""
    return 0.5 * (1 + math.cos(math.pi * p))


def restarts(p: float, config: TrainConfig) -> float:
    """As many half cosines as there are cycles, of equal length, each from 1.  arXiv:1608.03983, eq. 5, T_mult = 1."""
    cycles = config.schedule_cycles or CYCLES
    return 0.0 if p >= 1 else 0.5 * (1 + math.cos(math.pi * (cycles * p % 1)))


def linear(p: float, config: TrainConfig) -> float:
    return 1 - p


def polynomial(p: float, config: TrainConfig) -> float:
    return (1 - p) ** (config.schedule_power or POWER)


def wsd(p: float, config: TrainConfig) -> float:
    """Warm-up, stable, decay: 1, and over the last share of the steps linearly to 0.  Hägele et al. 2024, arXiv:2405.18392, sec. 3."""
    return min(1.0, (1 - p) / (config.schedule_decay or DECAY))


def rex(p: float, config: TrainConfig) -> float:
    """(1 − p) / (1/2 + (1 − p)/2): falls late.  Chen et al. 2021, arXiv:2107.04197."""
    return (1 - p) / (0.5 + 0.5 * (1 - p))


CYCLES, POWER, DECAY = 3, 2.0, 0.2
FALLS: dict[str, Callable[[float, TrainConfig], float]] = {
    "cosine": cosine,
    "cosine_restarts": restarts,
    "linear": linear,
    "polynomial": polynomial,
    "wsd": wsd,
    "rex": rex,
}
