"""Layers whose input stays the same for many calls compute once: the keys and values of cross-attention over all steps of a picture."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.layers import every

MEMORY = "_call_impl"  # what a module's __call__ calls; an attribute of the instance goes before the class's


class Memory:
    """A layer's output, hooks and so adapters included, for as long as its input is the same tensor object."""

    def __init__(self, call: Callable[..., Tensor]):
        self.call = call
        self.seen: Tensor | None = None  # held, so that no other tensor can take its place in memory
        self.kept: Tensor | None = None

    def __call__(self, x: Tensor, *rest: Any, **words: Any) -> Tensor:
        if rest or words or torch.compiler.is_compiling():  # a compiled graph computes everything each time
            return self.call(x, *rest, **words)
        if self.kept is None or x is not self.seen:
            self.seen, self.kept = x, self.call(x)
        return self.kept


@contextmanager
def constant(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block each layer looks at its input's identity: the same tensor again gives the output of last time, bit for bit.

    Do not change such a tensor in place, and do not train. Adapters may come, go and change their strength (they call `forget`).
    """
    chosen = [layer for layer in layers if MEMORY not in vars(layer)]  # in a nested block the outer one remembers already
    for layer in chosen:
        setattr(layer, MEMORY, Memory(layer._call_impl))
    try:
        yield
    finally:
        for layer in chosen:
            delattr(layer, MEMORY)


def forget(layers: Iterable[nn.Module]) -> None:
    """What `layers` remember is computed anew at their next call; for those who change what a layer does."""
    for layer in layers:
        memory = vars(layer).get(MEMORY)
        if memory is not None:
            memory.seen = memory.kept = None


def cross_attention(unet: nn.Module) -> list[nn.Module]:
    """The layers of `unet` that see nothing but the embedded prompt: the keys and values of its cross-attention."""
    return [
        layer
        for module in every(unet)
        if getattr(module, "is_cross_attention", False)
        for layer in (module.to_k, module.to_v)
        if isinstance(layer, nn.Linear)
    ]
