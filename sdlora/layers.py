"""What Linear and Conv2d do with a weight, and by which names a model's layers are known in adapters."""

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

TEXT = "text_encoder"
ADAPTABLE = (nn.Linear, nn.Conv2d)
LEVEL = "text_model."  # transformers 5 dropped this level of CLIPTextModel; adapter files keep it


def pair(layer: nn.Module, x: Tensor, a: Tensor, b: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """B(s · A x) for the Linear or Conv2d `layer`; see `down` and `up`. The scale meets the bottleneck, where it is cheap."""
    h = down(layer, x, a)
    plain = isinstance(scale, float) and scale == 1  # α = r, the default: a pass over h less, and another one backwards
    return up(layer, h if plain else (h * scale).to(h.dtype), b)


def down(layer: nn.Module, x: Tensor, a: Tensor) -> Tensor:
    """A x: (…, in) -> (…, r), or (n, in, h, w) -> (n, r, h', w') with the layer's own stride, padding and dilation.

    A is (r, in) or (r, in, kh, kw) and takes part in the dtype of x.
    """
    match layer:
        case nn.Linear():
            return F.linear(x, a.to(x.dtype))
        case nn.Conv2d():
            return layer._conv_forward(x, a.to(x.dtype), None)
        case _:
            raise TypeError(f"{type(layer).__name__} takes no low-rank update; only Linear and Conv2d do")


def up(layer: nn.Module, h: Tensor, b: Tensor) -> Tensor:
    """B h: (…, r) -> (…, out) with B (out, r), or a 1 × 1 convolution with B (out, r, 1, 1)."""
    return F.linear(h, b.to(h.dtype)) if isinstance(layer, nn.Linear) else F.conv2d(h, b.to(h.dtype))


def finite(*tensors: Tensor) -> bool:
    """Whether no number is NaN or ∞. Their sum tells faster: one that is a number has none of them in it."""
    wide = [tensor if tensor.dtype.itemsize > 1 else tensor.float() for tensor in tensors]  # 8-bit floats have no arithmetic
    total = sum((tensor.sum() for tensor in wide[1:]), start=wide[0].sum())
    return math.isfinite(total.item()) or all(bool(tensor.isfinite().all()) for tensor in wide)


def every(module: nn.Module) -> list[nn.Module]:
    """`module` and all within it, each once. `nn.Module.modules` yields through as many generators as a module lies deep, which for a
    U-Net takes milliseconds."""
    found, waiting = dict.fromkeys([module]), [module]
    while waiting:
        inner = [child for child in waiting.pop()._modules.values() if child is not None and child not in found]
        found |= dict.fromkeys(inner)
        waiting += inner
    return list(found)


def adaptable(module: nn.Module) -> dict[str, nn.Module]:
    """Dotted name -> layer, for every Linear and every ungrouped Conv2d of `module`, in the order of its `named_modules`.

    Those yield through as many generators as a module lies deep, which is a quarter of the time of putting an adapter on.
    """
    found: dict[str, nn.Module] = {"": module} if isinstance(module, ADAPTABLE) and takes(module) else {}
    seen = {id(module)}

    def walk(parent: nn.Module, prefix: str) -> None:
        for leaf, child in parent._modules.items():
            if child is None or id(child) in seen:
                continue
            seen.add(id(child))
            if isinstance(child, ADAPTABLE) and takes(child):
                found[prefix + leaf] = child
            if child._modules:
                walk(child, f"{prefix}{leaf}.")

    walk(module, "")
    return found


def takes(layer: nn.Module) -> bool:
    """Whether updates know what to do with a Linear or Conv2d."""
    return not isinstance(layer, nn.Conv2d) or layer.groups == 1


def canonical(component: str, path: str) -> str:
    """The name in an adapter of the layer at `path` of `component`: the same for every version of transformers."""
    if component.startswith(TEXT) and path.startswith("encoder."):
        path = LEVEL + path
    return f"{component}.{path}"


def named_layers(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Canonical name -> layer, for all adaptable layers of components such as {"unet": …, "text_encoder": …}."""
    return {canonical(component, path): layer for component, module in modules.items() for path, layer in adaptable(module).items()}
