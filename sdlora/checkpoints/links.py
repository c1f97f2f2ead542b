"""How one tensor of a single file (LDM naming) and one of diffusers' and transformers' modules stand for each other, both ways."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from sdlora.stored import Stored


class How(Enum):
    """What has to be done to the file's tensor to have the module's."""

    SAME = "same"
    THIRD = "third"  # the file has query, key and value as one matrix, rows one after the other
    TRANSPOSED = "transposed"  # the file multiplies from the right
    POINTWISE = "pointwise"  # the file has a 1 × 1 convolution where the module has a Linear


@dataclass(frozen=True)
class Link:
    """The tensor `ours` of a module is made of the tensor `theirs` of the file. `third`: which of the three, for How.THIRD."""

    ours: str
    theirs: str
    how: How = How.SAME
    third: int = 0


def taken(link: Link, stored: Stored) -> Stored:
    """The module's tensor from the file's; nothing is read yet."""
    match link.how:
        case How.THIRD:
            rows = stored.shape[0] // 3
            return stored.then((rows, *stored.shape[1:]), lambda t: t[link.third * rows : (link.third + 1) * rows])
        case How.TRANSPOSED:
            return stored.then(stored.shape[::-1], lambda t: t.T)
        case How.POINTWISE:
            return stored.then(stored.shape[:2], lambda t: t.reshape(t.shape[:2]))
        case _:
            return stored


def given(links: Iterable[Link], weights: Mapping[str, Stored]) -> dict[str, Stored]:
    """The file's tensors from a module's: the inverse of `taken` over all `links`; nothing is read yet."""
    groups: dict[str, list[Link]] = {}
    for link in links:
        groups.setdefault(link.theirs, []).append(link)
    return {theirs: _joined(sorted(group, key=lambda link: link.third), weights) for theirs, group in groups.items()}


def _joined(group: list[Link], weights: Mapping[str, Stored]) -> Stored:
    first = weights[group[0].ours]
    match group[0].how:
        case How.THIRD:
            parts = [weights[link.ours] for link in group]
            shape = (3 * first.shape[0], *first.shape[1:])
            return replace(first, shape=shape, read=lambda: torch.cat([part.read() for part in parts]))
        case How.TRANSPOSED:
            return first.then(first.shape[::-1], lambda t: t.T)
        case How.POINTWISE:
            return first.then((*first.shape, 1, 1), lambda t: _pointwise(t))
        case _:
            return first


def _pointwise(weight: Tensor) -> Tensor:
    return weight[:, :, None, None]
