"""Which condition runs when: paired blocks whose order is random, yet balanced for position and for what ran before."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Block:
    """One prompt and seed, drawn once under every condition."""

    index: int
    prompt: str
    seed: int
    order: tuple[str, ...]  # the names of all conditions, in the order of their run


def blocks(
    count: int, prompts: Sequence[str], seeds: Sequence[int], conditions: Sequence[str], seed: int, runs: Sequence[int] = ()
) -> list[Block]:
    """`count` blocks; prompts and seeds come round in turn. In every len(conditions) blocks each condition takes each place once.

    `runs`, one number per prompt: so many blocks of each prompt one after the other, in place of `count`; seeds come round in turn.
    """
    items = [(prompt, s) for s in seeds for prompt in prompts]
    if runs:
        items = [(prompt, seeds[i % len(seeds)]) for prompt, times in zip(prompts, runs, strict=True) for i in range(times)]
        count = len(items)
    rng = np.random.default_rng(seed)
    orders: list[tuple[str, ...]] = []
    while len(orders) < count:
        orders += square(conditions, rng)
    return [Block(i, *items[i % len(items)], orders[i]) for i in range(count)]


@dataclass(frozen=True)
class Roles:
    """How a condition and the base take turns in one block."""

    leads: bool  # the condition's step comes first
    swapped: bool  # the condition is on the second set of networks, the base on the first


def roles(block: int, number: int, seed: int) -> Roles:
    """Of condition `number` in `block`, a function of `seed`: in every four blocks each of the four ways once, in random order.

    So neither the place in a turn nor where a set of networks lies in memory is a condition's own.
    """
    ways = [Roles(leads, swapped) for leads in (False, True) for swapped in (False, True)]
    return ways[np.random.default_rng((seed, number, block // 4)).permutation(4)[block % 4]]


def square(conditions: Sequence[str], rng: np.random.Generator) -> list[tuple[str, ...]]:
    """A Latin square with random names and rows.  Williams 1949: for an even number each condition follows each other one once."""
    n = len(conditions)
    zigzag = [(i + 1) // 2 if i % 2 else (n - i // 2) % n for i in range(n)]  # 0, 1, n−1, 2, n−2, …
    names = [conditions[i] for i in rng.permutation(n)]
    return [tuple(names[(place + shift) % n] for place in zigzag) for shift in rng.permutation(n)]
