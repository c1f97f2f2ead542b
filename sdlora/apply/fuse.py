"""Fused: W̃ = W + Σ ηᵢ ΔWᵢ, summed in fp32 from the original weight, one cast; the original is put back in the end.

A layer remembers its original weight and everything that is fused into it. Whenever something comes or goes, the weight is
made anew from the original, so that the order of comings and goings does not matter and nothing is left in the end. Where the
weight came from a memory-mapped file and is still what stands there, the file is the memory: there is no second copy.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.adapter import Adapter
from sdlora.apply.constant import forget
from sdlora.apply.fold import unfold
from sdlora.checkpoints.origins import origin, reread
from sdlora.errors import SdloraError
from sdlora.matching import matched, weight_of
from sdlora.stored import Stored

STATE = "_fusion"  # the attribute under which a layer carries its Fusion
WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number


@dataclass(frozen=True, eq=False)
class Kept:
    """The original as a copy."""

    weight: Tensor

    def read(self, like: Tensor) -> Tensor:
        return self.weight.to(like.device)

    def release(self) -> None:
        pass


@dataclass(frozen=True, eq=False)
class OnDisk:
    """The original as a tensor of a mapped file."""

    stored: Stored
    total: int  # of its bits, by which a file that was written to since is known

    def read(self, like: Tensor) -> Tensor:
        weight = reread(self.stored, like)
        if _total(weight) != self.total:
            raise SdloraError("the base model's file was written to while an adapter was fused into the model; load the base anew")
        return weight

    def release(self) -> None:
        self.stored.release()


@dataclass(eq=False)
class Fusion:
    original: Kept | OnDisk
    parts: dict[object, list[tuple[Any, float]]] = field(default_factory=dict)  # by the block they came with

    def into(self, weight: Tensor) -> None:
        """Make `weight` what it has to be; the original itself where no strength differs from 0 (adding +0 would turn −0 into +0)."""
        original = self.original.read(weight)
        parts = [(update, eta) for group in self.parts.values() for update, eta in group if eta != 0]
        if not parts:
            weight.copy_(original)
        else:
            dtype = torch.promote_types(original.dtype, torch.float32)
            total = torch.zeros_like(original, dtype=dtype)
            for update, eta in parts:
                total += eta * update.delta(original).to(original.device, dtype)
            weight.copy_(total.add_(original))
        self.original.release()


@contextmanager
def fused(modules: Mapping[str, nn.Module], weighted: Sequence[tuple[Adapter, float]]) -> Iterator[None]:
    """The adapters are in the weights inside the block, and gone bit for bit after it. Blocks nest and end in any order.

    Costs a copy of each weight concerned, but for weights that stand in a mapped file (models.load of .safetensors; it has to stay as
    it is, or taking the adapters off is a SdloraError). Do not change the model's dtype inside the block.
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
    unfold(layer)
    fusion: Fusion = getattr(layer, STATE, None) or Fusion(_original(layer))
    setattr(layer, STATE, fusion)
    fusion.parts[block] = parts
    fusion.into(weight_of(layer))
    forget([layer])


@torch.no_grad()
def _remove(layer: nn.Module, block: object) -> None:
    fusion: Fusion | None = getattr(layer, STATE, None)
    if fusion is None or block not in fusion.parts:
        return
    unfold(layer)
    del fusion.parts[block]
    fusion.into(weight_of(layer))
    forget([layer])
    if not fusion.parts:
        delattr(layer, STATE)


def _original(layer: nn.Module) -> Kept | OnDisk:
    """The file's tensor, if it is the weight bit for bit: who loaded the weight may have changed it."""
    weight, stored = weight_of(layer).detach(), origin(layer)
    if stored is not None and stored.shape == tuple(weight.shape):
        equal = torch.equal(_bits(reread(stored, weight)), _bits(weight))
        stored.release()
        if equal:
            return OnDisk(stored, _total(weight))
    return Kept(weight.clone())


def _bits(weight: Tensor) -> Tensor:
    return weight.view(WHOLE[weight.element_size()])


def _total(weight: Tensor) -> int:
    return int(_bits(weight).sum(dtype=torch.int64))
