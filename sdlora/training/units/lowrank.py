"""One Linear inside a unit: the product with W + s B A, and the gradients of x, A and B by thin products.

dL/dB = s gᵀ(x Aᵀ) and dL/dA = s (g B)ᵀ x, with rows x (m, in) and g (m, out): the transposes of y = x (W + s B A)ᵀ.
Hu et al. 2021, arXiv:2106.09685, eq. 3. W + s B A costs r·in·out, the two thin products that it saves r·m·(in + out) each.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdlora.apply.inject import CHILD
from sdlora.kinds.lora import Lora

Factors = tuple[Tensor | None, Tensor | None]  # A and B, or nothing
NONE: Factors = (None, None)


def usable(layers: Iterable[nn.Module]) -> bool:
    """Whether nothing hangs on the layers but LoRA without dropout, and products are as precise as they look."""
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    for layer in layers:
        trained = layer._modules.get(CHILD)
        if trained is None:
            if layer._forward_hooks:
                return False
        elif trained.kind is not Lora or trained.gate is not None or len(layer._forward_hooks) != 1:
            return False
    return True


def factors(layer: nn.Module) -> Factors:
    trained = layer._modules.get(CHILD)
    return NONE if trained is None else (trained._parameters["a"], trained._parameters["b"])


def scale(layer: nn.Module, a: Tensor | None) -> float:
    """α / r of the layer's update."""
    trained: Any = layer._modules.get(CHILD)
    return 1.0 if a is None else float(trained.constants["alpha"]) / a.shape[0]


def weight(layer: nn.Linear, a: Tensor | None, b: Tensor | None, s: float) -> Tensor:
    """W + s B A, (out, in)."""
    return layer.weight if a is None or b is None else torch.addmm(layer.weight, b, a, alpha=s)


def product(x: Tensor, layer: nn.Linear, a: Tensor | None, b: Tensor | None, s: float) -> Tensor:
    """(m, in) -> (m, out)."""
    return F.linear(x, weight(layer, a, b, s), layer.bias)


def onto(total: Tensor | None, g: Tensor, layer: nn.Linear, a: Tensor | None, b: Tensor | None, s: float) -> Tensor:
    """`total` + dL/dx, (m, in); `total` may be changed."""
    w = weight(layer, a, b, s)
    return g @ w if total is None else total.addmm_(g, w)


def gradients(g: Tensor, x: Tensor, a: Tensor | None, b: Tensor | None, s: float) -> Factors:
    """dL/dA and dL/dB."""
    if a is None or b is None:
        return NONE
    for_a, for_b = (g @ b).T @ x, g.T @ (x @ a.T)
    return (for_a, for_b) if s == 1 else (for_a.mul_(s), for_b.mul_(s))
