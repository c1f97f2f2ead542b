"""The learning rate as a function of the step alone."""

import math

from sdlora.training.config import TrainConfig


def factor(step: int, config: TrainConfig) -> float:
    """What the learning rate is multiplied by in step `step` (from 0): a linear warm-up, then constant 1 or a half cosine to 0.

    The warm-up's first step already learns a little, and so does the cosine's last.
    """
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
