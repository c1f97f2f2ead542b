"""Folded: a layer that multiplies by W + ΔW, once its stacked update has cost as much on the fly as that sum does.

Whoever stacks need not know how many calls are to come: renting until the rent paid is the price, and then buying, costs at most
twice what the best plan would (Karlin, Manasse, Rudolph & Sleator 1988, Competitive snoopy caching, Algorithmica 3, sec. 2).
The weight itself is never written to: another tensor takes its place for the time being.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sdlora.layers import adaptable
from sdlora.matching import weight_of

if TYPE_CHECKING:
    from sdlora.apply.joined import Joined

FOLDING = "_folding"  # the attribute under which a layer carries its Folding
EXACT = (torch.float32, torch.float64)  # in a shorter type the sum would round away a part of ΔW, as fusing does
# What an update's call costs beside its products, what each number that it adds to, and what a number of W + ΔW with its packing: in
# multiplications of a product. Measured in fp32 on 2 cores at ranks 16 and 128, from 128 × 128 to 10240 × 1280: 1.8, 2 … 4, 60 … 250.
CALL, OUTPUT, COPY = 2_000_000, 3, 120
PAIR = 2  # rows of a picture, with its prompt and without


class Room:
    """Bytes that the sums of a model's layers may take altogether."""

    def __init__(self, size: int):
        self.left = size

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


class Folding:
    """One layer's: whose update is in the weight, if any, and the weight without it."""

    def __init__(self, layer: nn.Module, room: Room):
        self.layer, self.room = layer, room
        self.owner: Joined | None = None
        self.original: Tensor | None = None

    def called(self, joined: Joined, output: Tensor) -> None:
        """`joined` has just added its update to `output`: on the fly, to all rows alike."""
        weight = weight_of(self.layer)
        out, rank, size = len(weight), joined.b.shape[1], weight.numel()
        products = min(rank * (size // out + out), size)
        positions = (
            PAIR * output[0].numel() // out
        )  # as of one picture: on which step a layer folds does not depend on a picture's neighbours
        joined.spent += CALL + positions * (products + OUTPUT * out)
        own = self.layer._parameters.get("weight") is weight  # and not computed from others, as by torch.nn.utils.parametrize
        alone = self.owner is None and len(self.layer._forward_hooks) == 1 and own and weight.dtype in EXACT
        if joined.spent >= size * (rank + COPY) and alone and self.room.take(size * weight.element_size()):
            self._fold(joined, weight)

    def _fold(self, joined: Joined, weight: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():  # sdlora.lean has to see whether a weight was written to
            b, a = joined.factors(weight.device)
            total = torch.addmm(weight.detach().flatten(1), b, a).view_as(weight)
            self.owner, self.original = joined, weight
            self.layer._parameters["weight"] = nn.Parameter(total, requires_grad=False)
        joined.listen(False)
        joined.spent, joined.delta = 0, None  # if it has to be bought again, that is after as much rent

    def undo(self, owner: Joined | None = None) -> None:
        """The layer has its own weight again; `owner`: if it is this one's update that is in there."""
        if self.owner is None or owner not in (None, self.owner):
            return
        owner, self.owner = self.owner, None
        self.room.left += weight_of(self.layer).nbytes
        self.layer._parameters["weight"], self.original = self.original, None  # type: ignore[assignment]
        owner.listen(owner.active)


@contextmanager
def folding(model: nn.Module, size: int) -> Iterator[None]:
    """Inside, stacked adapters of `model` that cost more on the fly fold their layers, in `size` bytes altogether.

    For calls without gradients; a compiled model stays as it is. Adapters may come, go and change their strength; do not look at
    weights inside, write to them or move the model.
    """
    room = Room(size)
    wanted = size > 0 and model._compiled_call_impl is None
    chosen = [layer for layer in adaptable(model).values() if FOLDING not in vars(layer)] if wanted else []
    for layer in chosen:
        setattr(layer, FOLDING, Folding(layer, room))
    try:
        yield
    finally:
        for layer in chosen:
            unfold(layer)
            delattr(layer, FOLDING)


def unfold(layer: nn.Module, owner: Joined | None = None) -> None:
    """For those who write to the layer's own weight, and for an owner that changes."""
    found: Folding | None = vars(layer).get(FOLDING)
    if found is not None:
        found.undo(owner)
