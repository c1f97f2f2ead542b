"""The U-Net's parts as one node of the gradient each, with a backward pass written by hand: the same numbers in less time and memory.

A training step of a small U-Net spends as long on small operations as on arithmetic. Here a residual block, an attention and a
feed-forward are one operation each, forwards and backwards; of frozen layers nothing is kept that only their own gradient would
need, and a trained layer is one product with W + (α / r) B A, of which A and B get their gradients without ΔW's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdlora.training.units import edges, residual, transformer

Forward = Callable[..., Any]
EXACT = (torch.float32, torch.float64)  # W + ΔW in half precision would round ΔW away


@contextmanager
def joined(unet: nn.Module) -> Iterator[None]:
    """Inside, parts of `unet` that are known (CPU, fp32 or fp64) compute as one, wherever a gradient is asked for.

    They look at what hangs on their layers in every call, and leave it to the part itself where that is more than a LoRA: dropout,
    other hooks, masks, autocast. Without gradients, in drawing and validation, they do nothing.
    """
    swapped: list[tuple[nn.Module, str, Any]] = []
    weight = next(unet.parameters())
    try:
        if weight.device.type == "cpu" and weight.dtype in EXACT:
            for module in unet.modules():
                for part in (residual, transformer, edges):
                    for name, forward in part.forwards(module).items():
                        swapped.append((module, name, vars(module).get(name)))
                        setattr(module, name, forward)
        yield
    finally:
        for module, name, before in swapped:
            if before is None:
                vars(module).pop(name, None)
            else:
                setattr(module, name, before)


@contextmanager
def apart(unet: nn.Module) -> Iterator[None]:
    """Inside, parts that compute as one are themselves again: pictures drawn during a training are those that are drawn after it."""
    own = [
        (module, name, forward)
        for module in unet.modules()
        for name, forward in vars(module).items()
        if str(getattr(forward, "__module__", "")).startswith(__name__)
    ]
    for module, name, _ in own:
        delattr(module, name)
    try:
        yield
    finally:
        for module, name, forward in own:
            setattr(module, name, forward)
