"""An exponential moving average of the trained numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Average:
    """x̄ ← d x̄ + (1 − d) x after every step, in fp32; begins as the first x.

    d = `decay`, with a warm-up min(decay, (1 + n) / (10 + n)) after n steps, as TensorFlow's ExponentialMovingAverage has it.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float, warmup: bool):
        self.values = [parameter.detach().clone() for parameter in parameters]
        self.decay, self.warmup = decay, warmup

    def rate(self, step: int) -> float:
        """d after `step` steps (from 1)."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], step: int) -> None:
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in parameters], 1 - self.rate(step))

    @torch.no_grad()
    def restore(self, values: Sequence[Tensor]) -> None:
        for own, saved in zip(self.values, values, strict=True):
            own.copy_(saved)
