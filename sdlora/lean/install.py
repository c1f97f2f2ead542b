"""Which layers and blocks of a network draw leaner, and for how long."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.lean import blocks
from sdlora.lean.layers import LANES, Convolution, Norm, Pointwise

CALLS, SMALL = 10, 64 << 20  # of a model; bytes
FORWARD = "forward"  # an attribute of the instance goes before the class's; hooks still come around it


@contextmanager
def lean(model: nn.Module, pack: bool = True) -> Iterator[None]:
    """Inside, `model` (a U-Net, or the decoder of a VAE) computes the same with less work, if it is on the CPU in fp32 or bf16.

    Weights are read and never written, hooks of layers act as ever (sdlora/lean/blocks). For evaluation without gradients alone; a compiled
    model stays as it is, and so does every block that is not of the plain kind which Stable Diffusion has.

    pack  convolutions keep a copy of their weights inside the block (`copies` says how much that is) and compute in channels-last
          memory: equal to rounding, and a row's result is then the same bits whatever the number of rows and of threads. Without it the
          result is that of the model itself, bit for bit.
    """
    chosen = [(module, own) for module in model.modules() if (own := replacement(module, pack)) is not None] if able(model) else []
    try:
        for module, own in chosen:
            setattr(module, FORWARD, own)
        yield
    finally:
        for module, _ in chosen:
            vars(module).pop(FORWARD, None)


def copies(model: nn.Module) -> int:
    """Bytes that `lean` copies of `model` at the most."""
    return sum(_bytes(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d) and not pointwise(module))


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


def replacement(module: nn.Module, pack: bool) -> Any:
    """What computes in the place of `module.forward`; None if it stays."""
    if FORWARD in vars(module):  # somebody's own, or that of a block around this one
        return None
    match module:
        case nn.Conv2d() if pack and _plain(module):
            return Pointwise(module) if pointwise(module) else Convolution(module)
        case nn.GroupNorm() if pack and module.weight is not None and module.weight.dtype == torch.float32:
            return Norm(module) if module.num_channels // module.num_groups < LANES else None
    return next((block(module) for block in blocks.BLOCKS if block.fits(module)), None)


def pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1


def _plain(layer: nn.Conv2d) -> bool:
    own = type(layer).forward is nn.Conv2d.forward and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return own and not layer.weight.is_inference()  # such a weight does not tell when it was written to


def _bytes(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()
