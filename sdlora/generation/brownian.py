"""Brownian paths over σ, for samplers of stochastic differential equations: noise that belongs to an interval, not to a call.

A path is a pure function of its seed: other steps over the same range see the same path, only at other places. The tree of
halvings, its seeds and so the numbers are those of torchsde.BrownianTree, which k-diffusion, AUTOMATIC1111 and ComfyUI use.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

DIGITS = 6  # places are rounded to 1e-6: there the halving ends
POOL = 24  # words of entropy in numpy's SeedSequence: torchsde's choice

Stream = Callable[[int, tuple[int, ...]], Iterator[Tensor]]  # (seed, shape) -> independent normal draws


def path(seed: int, shape: tuple[int, ...], low: float, high: float, stream: Stream) -> Callable[[float], Tensor]:
    """W(σ) − W(low) for σ from `low` to `high`, fp64 of `shape`; the increments over disjoint intervals are independent.

    Levy's construction: W at the middle of an interval is the mean of its ends plus noise of the bridge's variance.
    """
    whole = _draw(seed, (), shape, stream) * math.sqrt(high - low)

    @lru_cache(maxsize=3)  # a step begins where the last one ended
    def at(sigma: float) -> Tensor:
        place = min(max(round(sigma, DIGITS), round(low, DIGITS)), round(high, DIGITS))
        start, end, key, depth = round(low, DIGITS), round(high, DIGITS), 0, 0
        reached, increment = torch.zeros(shape, dtype=torch.float64), whole
        while place not in (start, end):
            middle = round((start + end) / 2, DIGITS)
            left, right = middle - start, end - middle
            bridge = math.sqrt(left * right / (end - start)) * _draw(seed, (key, depth), shape, stream)
            first = increment * (left / (end - start)) + bridge
            if place < middle:
                end, increment, key = middle, first, 2 * key
            else:
                start, increment, reached, key = middle, increment - first, reached + first, 2 * key + 1
            depth += 1
        return reached if place == start else reached + increment

    return at


def _draw(seed: int, node: tuple[int, ...], shape: tuple[int, ...], stream: Stream) -> Tensor:
    """The noise of one node of the tree: (its number on its level, its level), or () for the whole interval."""
    words = np.random.SeedSequence(seed, spawn_key=node, pool_size=POOL).generate_state(4)
    return next(stream(int(words[0]), shape)).double()
