"""Dropout on trainable updates: of the numbers between A and B, of ranks, of whole layers. All three are a factor on A x.

kohya's network_dropout, rank_dropout and module_dropout (networks/lora.py): a number, or a sample's rank, is 0 with its chance and
otherwise divided by what is left; a layer's update is left out for a whole batch with its chance, and not made larger otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.apply.inject import Trained

Source = Callable[[str, str, torch.device], torch.Generator]  # (layer, purpose, where) -> a fresh generator, always the same


@dataclass(frozen=True)
class Gate:
    """The factor for one layer, drawn anew but alike at each call: activations that are computed twice meet the same gate."""

    layer: str
    network: float
    rank: float
    module: float
    source: Source

    def __call__(self, h: Tensor) -> Tensor:
        """A x, (n, …, r) of a Linear or (n, r, h, w) of a Conv2d, with its factor."""
        if self.module:  # left out is times zero: so every optimizer sees every parameter in every step
            h = h * self._kept("module", (1,), self.module, h)
        if self.network:
            h = h * self._kept("network", tuple(h.shape), self.network, h) / (1 - self.network)
        if self.rank:
            n, r = h.shape[0], h.shape[1] if h.dim() == 4 else h.shape[-1]
            shape = (n, r, 1, 1) if h.dim() == 4 else (n, *(1,) * (h.dim() - 2), r)
            h = h * self._kept("rank", shape, self.rank, h) / (1 - self.rank)
        return h

    def _kept(self, purpose: str, shape: tuple[int, ...], chance: float, like: Tensor) -> Tensor:
        """1 with probability 1 − chance, else 0."""
        source = self.source(self.layer, purpose, like.device)
        return (torch.rand(shape, generator=source, device=like.device) >= chance).to(like.dtype)


@contextmanager
def dropping(carriers: Mapping[str, Trained], network: float, rank: float, module: float, source: Source) -> Iterator[None]:
    """Inside, the trainable updates (apply.carriers) drop out; keep the backward pass inside too where activations are computed twice."""
    for name, trained in carriers.items():
        trained.gate = Gate(name, network, rank, module, source)
    try:
        yield
    finally:
        for trained in carriers.values():
            trained.gate = None
