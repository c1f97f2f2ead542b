"""An adapter is data: a mapping from layer name to update, plus metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any, Protocol

from torch import Tensor, nn

from sdlora.layers import named_layers


class Update(Protocol):
    """What is added to one layer's weight; a frozen dataclass whose tensor fields are its parameters."""

    @property
    def rank(self) -> int: ...

    @property
    def alpha(self) -> float: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of ΔW: (out, in) or (out, in, kh, kw)."""
        ...

    @property
    def norm(self) -> float:
        """Frobenius norm of ΔW at η = 1."""
        ...

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW in fp32 (or fp64 where the update is fp64), shaped like `weight`; strength η = 1."""
        ...

    def residual(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What ΔW adds to `layer(x)`; shape of the layer's output."""
        ...


@dataclass(frozen=True, eq=False)
class Adapter:
    """Updates by canonical layer name ("unet.….to_q"), and what the file's header says (all strings)."""

    layers: Mapping[str, Any]  # str -> Update
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Numbers that were trained, α not counted."""
        return sum(size(update) for update in self.layers.values())


@dataclass(frozen=True)
class LayerCount:
    name: str
    shape: tuple[int, ...]  # of the full weight
    rank: int
    alpha: float
    parameters: int  # of the update, without α
    full: int  # of the full weight

    @property
    def ratio(self) -> float:
        return self.parameters / self.full


def tensors(update: Any) -> dict[str, Tensor]:
    """The tensor fields of an update, by field name."""
    found = {f.name: getattr(update, f.name) for f in fields(update)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def size(update: Any) -> int:
    return sum(t.numel() for t in tensors(update).values())


def counts(adapter: Adapter, modules: Mapping[str, nn.Module] | None = None) -> list[LayerCount]:
    """Parameters per layer beside those of the full matrix. 768 → 3072 at r = 32: 122,880 of 2,359,296.

    The full shape is the weight's in `modules`, or where none are given the one that ΔW has.
    """
    known = named_layers(modules) if modules else {}
    result = []
    for name, update in adapter.layers.items():
        weight = known[name].weight if name in known else None
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else tuple(update.shape)
        result.append(LayerCount(name, shape, update.rank, update.alpha, size(update), prod(shape)))
    return result
