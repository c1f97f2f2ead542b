"""Stacked: any number of adapters on the fly, each with its own strength, as one pair of matrix products per layer.

All updates of a layer are one update of rank Σr: A = [A₁; …; A_k], B = [B₁ … B_k], and between them the bottleneck is
multiplied by a vector with the entries ηᵢ αᵢ / rᵢ. Only this vector changes with the strengths; the vectors of all layers
lie in one tensor, so that a change is one copy, whatever the number of layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from sdlora.adapter import Adapter
from sdlora.apply.constant import forget
from sdlora.errors import SdloraError
from sdlora.layers import pair
from sdlora.matching import matched, weight_of


class Joined:
    """The updates of one layer as one: what its forward hook adds."""

    def __init__(self, layer: nn.Module, parts: Sequence[tuple[int, Any]]):
        """`parts`: the number of an adapter, and its update of this layer."""
        weight = weight_of(layer)
        self.a = torch.cat([update.a for _, update in parts]).to(weight.device, weight.dtype)
        self.b = torch.cat([update.b for _, update in parts], dim=1).to(weight.device, weight.dtype)
        self.ranks = [(owner, update.rank, update.scale) for owner, update in parts]  # which rows of the bottleneck are whose
        self.owners = {owner for owner, _ in parts}
        self.strengths = torch.empty(0)  # (Σr,) or (batch, Σr), fp32: a part of the Stack's vector
        self.active = False

    def come_to(self, device: torch.device) -> None:
        """The layer may have moved since it was stacked upon."""
        if self.a.device != device:
            self.a, self.b = self.a.to(device), self.b.to(device)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self.active:  # η = 0 is the base, bit for bit
            return output
        x = inputs[0]
        self.come_to(x.device)
        s = self.strengths.to(x.device)  # a part of the Stack's vector, so that itself it stays where that is
        if isinstance(layer, nn.Conv2d):
            s = s.view(*s.shape, 1, 1)  # (n, Σr, h, w) has its channels second
        elif s.dim() == 2:
            s = s.view(len(s), *(1,) * (x.dim() - 2), -1)  # (n, …, Σr)
        elif not torch.is_grad_enabled() and x.dtype == output.dtype == self.a.dtype and output.is_contiguous():
            return self.added(x, s, output)
        return output + pair(layer, x, self.a, self.b, s).to(output.dtype)

    def added(self, x: Tensor, s: Tensor, output: Tensor) -> Tensor:
        """The same for a Linear without gradients: the second product is summed into the layer's fresh output, without a temporary."""
        h = F.linear(x, self.a)
        if h.dtype != output.dtype:  # autocast chose another type for the product
            return output + F.linear((h * s).to(h.dtype), self.b).to(output.dtype)
        h = h.mul_(s).view(-1, h.shape[-1])
        output.view(-1, output.shape[-1]).addmm_(h, self.b.t())
        return output


class Stack:
    """The adapters that are on a model; `set_strengths` changes their η without rebuilding anything."""

    def __init__(self, adapters: Sequence[Adapter], layers: Mapping[str, nn.Module]):
        self.adapters = tuple(adapters)
        self.layers = dict(layers)
        self.joined = {name: Joined(layer, _parts(name, adapters)) for name, layer in layers.items()}
        self.vectors = [Vector(group) for group in _by_device(self.joined.values())]
        self.handles: list[RemovableHandle] = [layer.register_forward_hook(self.joined[name]) for name, layer in layers.items()]

    def set_strengths(self, etas: Sequence[float]) -> None:
        """One η per adapter, in the order in which they were stacked."""
        if len(etas) != len(self.adapters):
            raise SdloraError(f"{len(etas)} strengths for {len(self.adapters)} stacked adapters; give one per adapter")
        values = torch.tensor([float(eta) for eta in etas], dtype=torch.float64)
        for vector in self.vectors:
            vector.set(values)
        idle = {i for i, eta in enumerate(etas) if eta == 0}
        for joined in self.joined.values():
            joined.active = not joined.owners <= idle
        forget(self.layers.values())

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        forget(self.layers.values())


class Vector:
    """The strengths of all layers on one device, behind one another in one tensor of which each layer sees its part."""

    def __init__(self, group: Sequence[Joined]):
        ranks = [rank for joined in group for rank in joined.ranks]
        counts = torch.tensor([count for _, count, _ in ranks])
        self.owners = torch.tensor([owner for owner, _, _ in ranks]).repeat_interleave(counts)
        self.scales = torch.tensor([scale for _, _, scale in ranks], dtype=torch.float64).repeat_interleave(counts)
        self.values = torch.zeros(len(self.scales), device=group[0].a.device)  # fp32
        for joined, part in zip(group, self.values.split([len(joined.a) for joined in group]), strict=True):
            joined.strengths = part

    def set(self, etas: Tensor) -> None:
        """η per adapter, (k,) fp64."""
        self.values.copy_(self.scales * etas[self.owners])


def _by_device(joined: Any) -> list[list[Joined]]:
    groups: dict[torch.device, list[Joined]] = {}
    for one in joined:
        groups.setdefault(one.a.device, []).append(one)
    return list(groups.values())


def _parts(name: str, adapters: Sequence[Adapter]) -> list[tuple[int, Any]]:
    return [(i, adapter.layers[name]) for i, adapter in enumerate(adapters) if name in adapter.layers]


@contextmanager
def stacked(modules: Mapping[str, nn.Module], weighted: Sequence[tuple[Adapter, float]]) -> Iterator[Stack]:
    """The adapters are on the model inside the block: y = W x + Σ ηᵢ (αᵢ / rᵢ) Bᵢ Aᵢ x. The weights are never touched.

    Stacks, and whatever else is on the model, come off in any order.
    """
    layers: dict[str, nn.Module] = {}
    for adapter, _ in weighted:
        layers |= matched(modules, adapter)
    stack = Stack([adapter for adapter, _ in weighted], layers)
    try:
        stack.set_strengths([eta for _, eta in weighted])
        yield stack
    finally:
        stack.remove()
