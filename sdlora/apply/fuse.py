"""Fused: W̃ = W + Σ ηᵢ ΔWᵢ, summed in fp32 from the original weight, one cast; the original is kept and put back.

A layer remembers its original weight and everything that is fused into it. Whenever something comes or goes, the weight is
made anew from the original, so that the order of comings and goings does not matter and nothing is left in the end.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.adapter import Adapter
from sdlora.apply.constant import forget
from sdlora.matching import matched, weight_of

STATE = "_fusion"  # the attribute under which a layer carries its Fusion


@dataclass(eq=False)
class Fusion:
    original: Tensor
    parts: dict[object, list[tuple[Any, float]]] = field(default_factory=dict)  # by the block they came with

    def weight(self) -> Tensor:
        """In the original's dtype; the original itself where no strength differs from 0 (adding +0 would turn −0 into +0)."""
        parts = [(update, eta) for group in self.parts.values() for update, eta in group if eta != 0]
        if not parts:
            return self.original
        dtype = torch.promote_types(self.original.dtype, torch.float32)
        total = torch.zeros_like(self.original, dtype=dtype)
        for update, eta in parts:
            total += eta * update.delta(self.original).to(self.original.device, dtype)
        return (self.original.to(dtype) + total).to(self.original.dtype)


@contextmanager
def fused(modules: Mapping[str, nn.Module], weighted: Sequence[tuple[Adapter, float]]) -> Iterator[None]:
    """The adapters are in the weights inside the block, and gone bit for bit after it. Blocks nest and end in any order.

    Costs a copy of each weight concerned. Do not change the model's dtype inside the block.
    """
    layers: dict[str, nn.Module] = {}
    for adapter, _ in weighted:
        layers |= matched(modules, adapter)
    block = object()
    try:
        for name, layer in layers.items():
            _add(layer, block, [(adapter.layers[name], float(eta)) for adapter, eta in weighted if name in adapter.layers])
        yield
    finally:
        for layer in layers.values():
            _remove(layer, block)


@torch.no_grad()
def _add(layer: nn.Module, block: object, parts: list[tuple[Any, float]]) -> None:
    fusion: Fusion = getattr(layer, STATE, None) or Fusion(weight_of(layer).detach().clone())
    setattr(layer, STATE, fusion)
    fusion.parts[block] = parts
    weight_of(layer).copy_(fusion.weight())
    forget([layer])


@torch.no_grad()
def _remove(layer: nn.Module, block: object) -> None:
    fusion: Fusion | None = getattr(layer, STATE, None)
    if fusion is None or block not in fusion.parts:
        return
    del fusion.parts[block]
    weight_of(layer).copy_(fusion.weight())
    forget([layer])
    if not fusion.parts:
        delattr(layer, STATE)
