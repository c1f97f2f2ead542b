"""Which layers and blocks of a network draw leaner, and for how long."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdlora.layers import every
from sdlora.lean import blocks
from sdlora.lean.layers import LANES, Convolution, Norm, Pointwise, Product, packable
from sdlora.lean.once import once

CALLS, SMALL = 10, 64 << 20  # of a model; bytes
FORWARD = "forward"  # an attribute of the instance goes before the class's; hooks still come around it
Layer = nn.Conv2d | nn.Linear


@contextmanager
def lean(model: nn.Module, room: int = sys.maxsize) -> Iterator[int]:
    """Inside, `model` (a U-Net, or the decoder of a VAE) computes the same with less work, if it is on the CPU in fp32 or bf16.

    Weights are read and never written, hooks of layers act as ever (sdlora/lean/blocks). For evaluation without gradients alone; a compiled
    model stays as it is, and so does every block that is not of the plain kind which Stable Diffusion has.

    room  bytes for copies of weights inside the block. With enough of it for convolutions these are packed and compute in channels-last
          memory: equal to rounding, and a row's result is then the same bits whatever the number of rows and of threads. What a U-Net
          would compute several times, since rows are alike but for their prompts, it computes once (sdlora/lean/once). If there is
          enough of it for large products too, these are packed as well. With less, and so with 0, the result is that of the model
          itself, bit for bit.

    Gives the bytes that the copies take.
    """
    modules = every(model) if able(model) else []
    sizes = [copied(modules, which) for which in (convolves, gains)]
    pack, products = (bool(modules) and size <= room for size in sizes)
    owns = {module: own for module in modules if (own := replacement(module, pack, products)) is not None}
    chosen = owns | once(model, owns) if pack else owns
    try:
        for module, own in chosen.items():
            setattr(module, FORWARD, own)
        yield sizes[products] if pack else 0
    finally:
        for module in chosen:
            vars(module).pop(FORWARD, None)


def copies(model: nn.Module) -> int:
    """Bytes that `lean` copies of `model` at the most."""
    return copied(every(model), gains)


def copied(modules: Iterable[nn.Module], which: Callable[[Layer], bool]) -> int:
    return sum(module.weight.nbytes for module in modules if isinstance(module, Layer) and which(module))


def gains(layer: Layer) -> bool:
    """Whether its weight is worth a copy."""
    return convolves(layer) or packable(layer)


def convolves(layer: Layer) -> bool:
    return isinstance(layer, nn.Conv2d) and not pointwise(layer)


def pays(model: nn.Module, calls: int) -> bool:
    """Whether so many calls win back the time that the copies take to make. Measured on SD 1.5 in fp32 (2 cores, 256², prompt and
    negative): they cost as much as four or five calls win. Small copies are made within a call, or nearly so."""
    return calls >= CALLS or copies(model) <= SMALL


def able(model: nn.Module) -> bool:
    """Whether anything can be gained: the CPU with oneDNN, a precision that it has kernels for, no gradients, nothing compiled.

    Nor under autocast, which would find no convolutions and norms to cast.
    """
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cpu" or torch.is_grad_enabled() or model.training:
        return False
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available() or model._compiled_call_impl is not None:
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def replacement(module: nn.Module, pack: bool, products: bool) -> Any:
    """What computes in the place of `module.forward`; None if it stays."""
    if FORWARD in vars(module):  # somebody's own, or that of a block around this one
        return None
    match module:
        case nn.Conv2d() if pack and _plain(module):
            return Pointwise(Product(module, products)) if pointwise(module) else Convolution(module)
        case nn.Linear() if products and packable(module) and _plain(module):
            return Product(module, products)
        case nn.GroupNorm() if pack and module.weight is not None and module.weight.dtype == torch.float32:
            return Norm(module) if module.num_channels // module.num_groups < LANES else None
    return next((block(module) for block in blocks.BLOCKS if block.fits(module)), None)


def pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1


def _plain(layer: Layer) -> bool:
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    padded = isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str))
    own = type(layer).forward is kind.forward
    return own and not padded and not layer.weight.is_inference()  # such a weight does not tell when it was written to
