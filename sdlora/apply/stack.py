"""Stacked: any number of adapters on the fly, each with its own strength, as one pair of matrix products per layer.

All updates of a layer are one update of rank Σr: A = [A₁; …; A_k], B = [B₁ … B_k], and between them the bottleneck is
multiplied by a vector with the entries ηᵢ αᵢ / rᵢ. Only this vector changes with the strengths.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.layers import pair
from sdlora.matching import matched, weight_of


class Joined:
    """The updates of one layer as one: what its forward hook adds."""

    def __init__(self, layer: nn.Module, parts: Sequence[tuple[int, object]]):
        weight = weight_of(layer)
        updates = [update for _, update in parts]
        self.a = torch.cat([u.a for u in updates]).to(weight.device, weight.dtype)  # type: ignore[attr-defined]
        self.b = torch.cat([u.b for u in updates], dim=1).to(weight.device, weight.dtype)  # type: ignore[attr-defined]
        rows = [(u.scale, owner) for owner, u in parts for _ in range(u.rank)]  # type: ignore[attr-defined]
        self.scales = torch.tensor([scale for scale, _ in rows], dtype=torch.float64)
        self.owners = torch.tensor([owner for _, owner in rows])  # which adapter a row of the bottleneck belongs to
        self.strengths = torch.zeros(len(rows), device=weight.device)  # (Σr,) or (batch, Σr), fp32
        self.active = False

    def set_strengths(self, etas: Tensor) -> None:
        """η per adapter, (k,) fp64."""
        vector = self.scales * etas[self.owners]
        self.active = bool(vector.any())  # asked on the CPU, so that no device has to be waited for
        self.strengths.copy_(vector)

    def come_to(self, device: torch.device) -> None:
        """The layer may have moved since it was stacked upon."""
        if self.a.device != device:
            self.a, self.b, self.strengths = (tensor.to(device) for tensor in (self.a, self.b, self.strengths))

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self.active:  # η = 0 is the base, bit for bit
            return output
        x = inputs[0]
        self.come_to(x.device)
        s = self.strengths
        if isinstance(layer, nn.Conv2d):
            s = s.view(*s.shape, 1, 1)  # (n, Σr, h, w) has its channels second
        elif s.dim() == 2:
            s = s.view(len(s), *(1,) * (x.dim() - 2), -1)  # (n, …, Σr)
        return output + pair(layer, x, self.a, self.b, s).to(output.dtype)


class Stack:
    """The adapters that are on a model; `set_strengths` changes their η without rebuilding anything."""

    def __init__(self, adapters: Sequence[Adapter], layers: Mapping[str, nn.Module]):
        self.adapters = tuple(adapters)
        self.joined = {name: Joined(layer, _parts(name, adapters)) for name, layer in layers.items()}
        self.handles: list[RemovableHandle] = [layer.register_forward_hook(self.joined[name]) for name, layer in layers.items()]

    def set_strengths(self, etas: Sequence[float]) -> None:
        """One η per adapter, in the order in which they were stacked."""
        if len(etas) != len(self.adapters):
            raise SdloraError(f"{len(etas)} strengths for {len(self.adapters)} stacked adapters; give one per adapter")
        vector = torch.tensor([float(eta) for eta in etas], dtype=torch.float64)
        for joined in self.joined.values():
            joined.set_strengths(vector)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


def _parts(name: str, adapters: Sequence[Adapter]) -> list[tuple[int, object]]:
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
