"""Every random draw of a training is a pure function of (seed, purpose, numbers or names).

So a resumed run needs no generator's state, and neither batches, nor accumulation, nor caching can change what is drawn.
"""

import hashlib
from functools import lru_cache
from random import Random

import torch
from torch import Tensor


def generator(seed: int, purpose: str, *names: int | str) -> torch.Generator:
    """A fresh generator on the CPU for this one draw."""
    return torch.Generator().manual_seed(_number(seed, purpose, *names))


def chance(seed: int, purpose: str, *names: int | str) -> Random:
    """The same for draws that need no tensor."""
    return Random(_number(seed, purpose, *names))


def _number(seed: int, purpose: str, *names: int | str) -> int:
    digest = hashlib.sha256(" ".join(map(str, (seed, purpose, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def normal(shape: tuple[int, ...], seed: int, purpose: str, *numbers: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed, purpose, *numbers))


def uniform(seed: int, purpose: str, *names: int | str) -> float:
    return torch.rand((), generator=generator(seed, purpose, *names), dtype=torch.float64).item()


@lru_cache(maxsize=8)
def order(count: int, seed: int, purpose: str, epoch: int) -> Tensor:
    """(count,) the numbers 0 … count − 1 in the order of one epoch."""
    return torch.randperm(count, generator=generator(seed, purpose, epoch))


def quantiles(count: int, stratified: bool, seed: int, purpose: str, step: int) -> Tensor:
    """(count,) in [0, 1), fp64, each uniform; if stratified, one from each of `count` equal strata, in a random order."""
    source = generator(seed, purpose, step)
    u = torch.rand(count, generator=source, dtype=torch.float64)
    return (torch.randperm(count, generator=source) + u) / count if stratified else u
