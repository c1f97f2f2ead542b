"""Stacked: any number of adapters on the fly, each with its own strength, as one pair of matrix products per layer.

All updates of a layer are one update of rank Σr: A = [A₁; …; A_k], B = [B₁ … B_k], and between them the bottleneck is
multiplied by a vector with the entries ηᵢ αᵢ / rᵢ. Only this vector changes with the strengths; the vectors of all layers
lie in one tensor, so that a change is one copy, whatever the number of layers. Where every row of a batch has strengths of
its own, the tensor has as many rows, or each row's own columns of A and B stand for all (apply/rows.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.adapter import Adapter
from sdlora.apply.constant import forget
from sdlora.apply.joined import First, Joined, is_cheaper_dense
from sdlora.apply.rows import Rows, Selection
from sdlora.errors import SdloraError
from sdlora.layers import named_layers
from sdlora.matching import matched, weight_of

SIBLINGS = re.compile(r"(?P<attention>.*\.(?:attn1(?=\.to_[qkv]$)|attn2(?=\.to_[kv]$)|self_attn(?=\.[qkv]_proj$)))\..*")  # see one tensor
KEPT = 4  # selections of columns that are remembered: the calls of one step, where prompts of several lengths make several

Etas = tuple[tuple[float, ...], ...]


class Stack:
    """The adapters that are on a model; `set_strengths` and `set_rows` change their η without rebuilding anything."""

    def __init__(self, adapters: Sequence[Adapter], layers: Mapping[str, nn.Module]):
        self.adapters = tuple(adapters)
        self.layers = dict(layers)
        self.joined: dict[str, Joined] = {}
        self.firsts = [self._first(names) for names in _siblings(layers, adapters)]
        self.vectors = [Vectors(group) for group in _by_device(self.firsts)]
        self.current: Etas = ()
        self.selections: dict[Any, Selection] = {}

    def _first(self, names: Sequence[str]) -> First:
        parts = [_parts(name, self.adapters) for name in names]
        first = First([self.layers[name] for name in names], parts)
        for i, name in enumerate(names):
            self.joined[name] = Joined(self.layers[name], first, i)
        return first

    @cached_property
    def wild(self) -> set[int]:
        """The adapters with a number that is none; looked for when it matters, since that reads all of them."""
        return {owner for first in self.firsts for owner in first.wild()}

    def set_strengths(self, etas: Sequence[float]) -> None:
        """One η per adapter, in the order in which they were stacked, for whatever the model is called with."""
        self._set((tuple(float(eta) for eta in etas),))

    def set_rows(self, etas: Sequence[Sequence[float]]) -> None:
        """One η per adapter for each row of the batch that the model is called with next, (rows, k).

        A row comes out as it would alone, to rounding, and one with nothing but zeros as from the base. Layers may be called with one
        row for all (diffusers' U-Net embeds one timestep so); their output then has all rows.
        """
        self._set(tuple(tuple(float(eta) for eta in row) for row in etas))

    def _set(self, etas: Etas) -> None:
        for row in etas:
            if len(row) != len(self.adapters):
                raise SdloraError(f"{len(row)} strengths for {len(self.adapters)} stacked adapters; give one per adapter")
        distinct = set(etas)
        etas = etas if len(distinct) > 1 else etas[:1]
        if etas == self.current:  # and what constant layers remember stays valid, as do layers that are folded
            return
        mixed = any(etas[0]) and not all(etas[0])
        hidden = mixed and any(etas[0][i] == 0 for i in self.wild)  # 0 · ∞ would be NaN; columns that are not taken are nothing
        rows = Rows(etas, self._selection(etas)) if len(distinct) > 1 or hidden else None
        values = torch.tensor(etas, dtype=torch.float64)
        for vectors in self.vectors:
            vectors.set(values)
        for first in self.firsts:
            first.change(rows)
        used = {i for row in distinct for i, eta in enumerate(row) if eta != 0}
        for joined in self.joined.values():
            joined.change(bool(joined.owners & used))
        self.current = etas
        forget(self.layers.values())

    def _selection(self, etas: Etas) -> Selection:
        """Rows with other strengths of the same adapters share what was gathered for them."""
        pattern = tuple(tuple(eta != 0 for eta in row) for row in etas)
        found = self.selections.pop(pattern, None) or Selection(pattern)
        self.selections[pattern] = found
        while len(self.selections) > KEPT:
            del self.selections[next(iter(self.selections))]
        return found

    def remove(self) -> None:
        for joined in self.joined.values():
            joined.change(False)
        self.joined = {}  # what is set from now on reaches no layer
        forget(self.layers.values())


class Vectors:
    """The strengths of all layers on one device, behind one another in one tensor of which each layer sees its part.

    It stays the same tensor while the number of its rows does: a compiled model is not compiled again for other numbers in it.
    """

    def __init__(self, group: Sequence[First]):
        self.group, self.sizes = group, [len(first.a) for first in group]
        owners, scales, ranks = zip(*(update for first in group for update in first.updates), strict=True)
        columns = torch.tensor(ranks)
        self.owners = torch.tensor(owners).repeat_interleave(columns)
        self.scales = torch.tensor(scales, dtype=torch.float64).repeat_interleave(columns)
        for first, own, factors in zip(group, self.owners.split(self.sizes), self.scales.split(self.sizes), strict=True):
            first.owners, first.scales = own, factors
        self.values = torch.empty(0, 0)  # (rows, Σr of all layers) fp32

    def set(self, etas: Tensor) -> None:
        """η per row and adapter, (rows, k) fp64; one row is every row's."""
        if len(etas) != len(self.values):
            with torch.inference_mode(False):  # made in it, they could not be changed outside of it
                self.values = torch.empty(len(etas), len(self.scales), device=self.group[0].a.device)
                for first, part in zip(self.group, self.values.split(self.sizes, dim=1), strict=True):
                    first.strengths = part
        self.values.copy_(self.scales * etas[:, self.owners])


def _siblings(layers: Mapping[str, nn.Module], adapters: Sequence[Adapter]) -> list[list[str]]:
    """The layers' names; together those that are called with one and the same tensor and are worth a common first product."""
    groups: dict[Any, list[str]] = {}
    for name, layer in layers.items():
        found, weight = SIBLINGS.fullmatch(name), weight_of(layer)
        alone = not found or not isinstance(layer, nn.Linear) or is_cheaper_dense(layer, _rank(name, adapters))
        key = name if alone else (found["attention"], weight.shape[1], weight.device, weight.dtype)  # type: ignore[index]
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _by_device(firsts: Sequence[First]) -> list[list[First]]:
    groups: dict[torch.device, list[First]] = {}
    for first in firsts:
        groups.setdefault(first.a.device, []).append(first)
    return list(groups.values())


def _parts(name: str, adapters: Sequence[Adapter]) -> list[tuple[int, Any]]:
    return [(i, adapter.layers[name]) for i, adapter in enumerate(adapters) if name in adapter.layers]


def _rank(name: str, adapters: Sequence[Adapter]) -> int:
    return sum(update.rank for _, update in _parts(name, adapters))


@contextmanager
def stacked(modules: Mapping[str, nn.Module], weighted: Sequence[tuple[Adapter, float]]) -> Iterator[Stack]:
    """The adapters are on the model inside the block: y = W x + Σ ηᵢ (αᵢ / rᵢ) Bᵢ Aᵢ x. The weights are never touched.

    Stacks, and whatever else is on the model, come off in any order.
    """
    layers: dict[str, nn.Module] = {}
    known = named_layers(modules)
    for adapter, _ in weighted:
        layers |= matched(modules, adapter, layers=known)
    stack = Stack([adapter for adapter, _ in weighted], layers)
    try:
        stack.set_strengths([eta for _, eta in weighted])
        yield stack
    finally:
        stack.remove()
